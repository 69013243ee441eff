import { decodeControl } from '../avro/control.ts'
import { readPrefix } from '../avro/decoder.ts'
import { emptyPrefix, framing } from '../avro/plan.ts'
import type { SchemaReader } from '../avro/schema-ids.ts'
import type { ChangeLog, FetchedBatch } from '../change-log/change-log.ts'
import { partitionName, tableName, type Offset, type TableSchema } from '../model.ts'
import { Output } from '../output.ts'
import { texts, type Suspect } from './compare.ts'

/** What came in the log. `rows`: of each table, every key once. `passedOver`: changes whose rows are not among them, of each table: those of tables without
 *  a key, or with another key since, and changes of whole tables. `next`: where reading goes on. */
export type Round = {
  readonly rows: ReadonlyMap<string, readonly Suspect[]>
  readonly count: number
  readonly passedOver: ReadonlyMap<string, number>
  readonly next: readonly Offset[]
}
/** Reads from the log which rows have changed, and nothing else of them. */
export interface ChangedRows {
  /** At most `most` rows; waits up to `maxWait` ms for the first. The same again until it was accepted. */
  pull(most: number, maxWait: number, signal: AbortSignal): Promise<Round>
  accept(round: Round): void
  /** All before these was accepted. */
  readonly offsets: readonly Offset[]
  /** Goes on from elsewhere. */
  seek(offsets: readonly Offset[]): void
}

/** A round reads for no longer than this many ms, once it has a row. */
const roundMs = 1_000

/** `tables`: as they are at the source now, by topic; what else is in the log is passed over without a word. */
export function changedRows(
  log: Pick<ChangeLog, 'fetch'>,
  schemas: Pick<SchemaReader, 'decoder' | 'load'>,
  tables: ReadonlyMap<string, TableSchema>,
  from: readonly Offset[],
): ChangedRows {
  let accepted = from
  const out = new Output(4096)
  const prefix = emptyPrefix()
  const names = new Map([...tables].map(([topic, { table }]) => [topic, tableName(table)]))
  const keys = new Map([...tables].map(([topic, schema]) => [topic, keyNames(schema)]))

  const pull = async (most: number, maxWait: number, signal: AbortSignal): Promise<Round> => {
    const reached = new Map(accepted.map((at) => [partitionName(at), at]))
    const found = new Map<string, Map<string, Suspect>>()
    const passedOver = new Map<string, number>()
    /** Framed keys seen in this round: the usual repeat is told without decoding it. */
    const seen = new Set<string>()
    let count = 0
    const passOver = (table: string): void => void passedOver.set(table, (passedOver.get(table) ?? 0) + 1)

    /** The record whose schema is not known yet; -1: read to the end or until there are enough. */
    const take = (batch: FetchedBatch, first: number): number => {
      const { topic, partition } = batch
      const name = names.get(topic) ?? ''
      const stand = (offset: number): void => void reached.set(partitionName(batch), { topic, partition, offset })
      for (let i = first; i < batch.count; i++) {
        if (count >= most) {
          stand(batch.offsets[i] ?? 0)
          return -1
        }
        const kind = readPrefix(batch, i, prefix)
        if (kind === 'none') continue
        if (kind === 'control') {
          const record = decodeControl(batch.bytes.subarray(batch.bounds[4 * i + 2], batch.bounds[4 * i + 3]))
          if (record.kind === 'barrier') passOver(name)
          continue
        }
        const keyStart = batch.bounds[4 * i] ?? -1
        const keyText =
          keyStart < 0
            ? ''
            : Buffer.from(batch.bytes.subarray(keyStart + framing, batch.bounds[4 * i + 1])).toString('latin1')
        const known = `${topic}\n${keyText}`
        if (keyStart >= 0 && seen.has(known)) continue
        const decoder = schemas.decoder(prefix.schemaId)
        if (decoder === undefined) return i
        const { schema } = decoder
        if (schema.key.length === 0 || keyNames(schema) !== keys.get(topic)) {
          passOver(name)
          continue
        }
        seen.add(known)
        out.clear()
        const fresh = decoder.images(out, batch, i, prefix)
        const starts = Int32Array.of(0, fresh, out.at)
        const [start, end] = fresh < out.at ? [fresh, out.at] : [0, fresh]
        const key = texts(schema, { bytes: out.bytes, starts, count: 2 }, start, end, schema.key)
        const rows = found.get(name) ?? new Map<string, Suspect>()
        found.set(name, rows)
        const text = JSON.stringify(key)
        if (rows.has(text)) continue
        rows.set(text, { key })
        count++
      }
      stand(batch.next)
      return -1
    }

    const began = performance.now()
    for (let wait = maxWait; ; wait = 0) {
      const fetched = await log.fetch([...reached.values()], wait, signal)
      for (const batch of fetched) {
        for (let i = take(batch, 0); i >= 0; i = take(batch, i)) {
          const at = { topic: batch.topic, partition: batch.partition, offset: batch.offsets[i] ?? 0 }
          await schemas.load(prefix.schemaId, signal, at)
        }
      }
      if (fetched.length === 0 || count >= most || performance.now() - began > maxWait + roundMs) break
    }
    const rows = new Map([...found].map(([table, rows]) => [table, [...rows.values()]]))
    return { rows, count, passedOver, next: [...reached.values()] }
  }

  return {
    pull,
    accept({ next }) {
      accepted = next
    },
    get offsets() {
      return accepted
    },
    seek(offsets) {
      accepted = offsets
    },
  }
}

function keyNames({ key, columns }: TableSchema): string {
  return JSON.stringify(key.map((column) => columns[column]?.name ?? ''))
}
