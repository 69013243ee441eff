import type { SourceEvent } from '../../src/connector.ts'
import { tableName, type Effect } from '../../src/model.ts'
import { readImage } from '../../src/rows.ts'

/** One change as plain values, for comparisons in tests. A cell is text, null, or undefined where absent. */
type FlatCell = string | null | undefined
export type Flat =
  | {
      readonly kind: 'change'
      readonly position: string
      readonly seq: number
      readonly id: string
      readonly committedAt: number
      readonly table: string
      readonly op: number
      readonly old: readonly FlatCell[]
      readonly new: readonly FlatCell[]
    }
  | { readonly kind: 'effect'; readonly position: string; readonly seq: number; readonly effect: Effect }
  | { readonly kind: 'message'; readonly position: string; readonly prefix: string; readonly content: string }

/** Copies everything out of an event, whose memory is lent. */
export function flatten(event: SourceEvent): readonly Flat[] {
  if (event.kind === 'effect') return [{ kind: 'effect', ...event.mark, effect: event.effect }]
  if (event.kind === 'message') {
    const content = Buffer.from(event.content).toString()
    return [{ kind: 'message', position: event.position, prefix: event.prefix, content }]
  }
  const flat: Flat[] = []
  const { images, transactions } = event
  const image = (i: number): readonly FlatCell[] =>
    readImage(images.bytes, images.starts[i] ?? 0, images.starts[i + 1] ?? 0).map((cell) =>
      cell ? Buffer.from(cell.bytes).toString() : cell,
    )
  let entry = 0
  for (let i = 0; i < event.count; i++) {
    while (entry + 1 < transactions.length && (transactions[entry + 1]?.first ?? 0) <= i) entry++
    const transaction = transactions[entry]
    const schema = event.schemas[event.table[i] ?? 0]
    if (!transaction || !schema || transaction.first > i) throw new Error(`change ${i} has no transaction or table`)
    flat.push({
      kind: 'change',
      position: transaction.position,
      seq: transaction.firstSeq + 4 * (i - transaction.first),
      id: transaction.id,
      committedAt: transaction.committedAt,
      table: tableName(schema.table),
      op: event.op[i] ?? -1,
      old: image(2 * i),
      new: image(2 * i + 1),
    })
  }
  return flat
}
