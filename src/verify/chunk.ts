import { Failure, asFailure } from '../errors.ts'
import { tableName, type Range, type TableSchema } from '../model.ts'
import { compareRange, findSuspects, type Ends, type Suspect } from './compare.ts'
import type { ChunkLine, DifferenceLine, Line, UnsettledLine } from './journal.ts'
import { told } from './told.ts'
import { settle, type Difference, type Witness } from './settle.ts'

/** How one piece of a table is compared. Times in ms. */
export type ChunkOptions = {
  /** Until a row that differs is given up as unknown. */
  readonly settleMs: number
  readonly withValues: boolean
  readonly now: () => number
}

/** Rows that are settled at once, and characters of their keys. */
const mostSuspects = 1_000
const mostLength = 4 << 20
/** At a range that differs while none of its rows does, and that is written to all the time. */
const mostLooks = 3

/** Such a row is in no index of keys, and its partition's changes never reach it. */
const nullKey = 'its key is NULL: delete it at the target, and let the key take no NULL'

/** By their numbers in the table's plan. */
type Place = { readonly first: number; readonly last: number }

/** What a range of a table comes to: the lines about it, of which the last is the piece's own. `parts`: it, in pieces of the size that one statement should
 *  read. What cannot be read is unknown; rejects where it is worth trying again. */
export async function verifyChunk(
  ends: Ends,
  schema: TableSchema,
  parts: readonly Range[],
  { first, last }: Place,
  witness: Witness,
  { settleMs, withValues, now }: ChunkOptions,
  signal: AbortSignal,
): Promise<readonly Line[]> {
  const table = tableName(schema.table)
  const lines: (DifferenceLine | UnsettledLine)[] = []
  const count = { ...none }
  let why: string | undefined
  let partial = false
  /** Suspects of several parts, as they share the waits that settle them, and when each was seen. */
  const seen = new Map<Suspect, number>()
  let length = 0
  const judge = async (): Promise<void> => {
    const suspects = [...seen.keys()].filter(({ key }) => {
      const isFound = schema.key.length === 0 || !key.includes(null)
      if (!isFound) lines.push({ kind: 'unsettled', table, key, why: (why = nullKey), rechecks: 0 })
      if (!isFound) count.unsettled++
      return isFound
    })
    const settled = suspects.length === 0 ? [] : await settle(ends, schema, suspects, witness, settleMs, signal)
    for (const one of settled) {
      const firstSeen = seen.get(one.suspect) ?? now()
      count.rechecks = Math.max(count.rechecks, one.rechecks)
      if (one.kind === 'same') count.transient++
      else if (one.kind === 'unknown') {
        count.unsettled++
        why ??= one.why
        const { key } = one.suspect
        lines.push({ kind: 'unsettled', table, key, why: one.why, rechecks: one.rechecks })
      } else if (!isOfAnotherKey(schema, one)) {
        const line = lineOf(schema, one, firstSeen, withValues)
        if (line.what === 'only source') count.onlySource++
        else if (line.what === 'only target') count.onlyTarget++
        else if (line.what === 'different') count.different++
        else {
          const [source, target] = line.copies ?? [0, 0]
          count.onlySource += Math.max(0, source - target)
          count.onlyTarget += Math.max(0, target - source)
        }
        lines.push(line)
      }
    }
    seen.clear()
    length = 0
  }
  try {
    for (const part of parts) {
      const compared = await compareRange(ends, schema, part, signal)
      count.source += compared.source
      count.target += compared.target
      for (let look = compared, looks = 1; !look.equal; looks++) {
        let found = 0
        for await (const group of findSuspects(ends, schema, part, look, signal)) {
          const at = now()
          found += group.length
          for (const suspect of group) {
            seen.set(suspect, at)
            for (const text of suspect.key) length += text?.length ?? 0
          }
          if (seen.size >= mostSuspects || length >= mostLength) await judge()
        }
        // Without any, all parts of it were equal: what differed was under way.
        if (found > 0 || looks === mostLooks) break
        const again = await compareRange(ends, schema, part, signal)
        if (!again.equal && again.digests === look.digests)
          throw new Failure('LIMIT_EXCEEDED', { observed: 'it differs, nobody writes to it, and no row of it differs' })
        look = again
      }
    }
    await judge()
  } catch (error) {
    if (signal.aborted || asFailure(error).policy === 'retry') throw error
    why = told(error)
    partial = true
  }
  const differs = count.onlySource + count.onlyTarget + count.different > 0
  const verdict = differs ? 'different' : why === undefined ? 'equal' : 'unknown'
  const chunk: ChunkLine = {
    kind: 'chunk',
    table,
    first,
    last,
    at: now(),
    verdict,
    ...count,
    ...(why !== undefined && { why }),
    ...(partial && { unread: true as const }),
  }
  return [...lines, chunk]
}

/** Both ends have the row, under keys that are equal and print differently: it is told where the source's key is. */
export function isOfAnotherKey({ key }: TableSchema, { suspect, source, target }: Difference): boolean {
  if (key.length === 0 || source.row === undefined || target.row === undefined) return false
  return key.some((column, i) => source.row?.[column] !== suspect.key[i])
}

export function lineOf(schema: TableSchema, found: Difference, firstSeen: number, withValues: boolean): DifferenceLine {
  const { suspect, source, target, position, rechecks } = found
  const about = {
    kind: 'difference',
    table: tableName(schema.table),
    key: suspect.key,
    position,
    firstSeen,
    rechecks,
  } as const
  if (schema.key.length === 0) return { ...about, what: 'copies', columns: [], copies: [source.copies, target.copies] }
  const columns = schema.columns.flatMap(({ name }, i) => {
    const [from, to] = [source.row?.[i], target.row?.[i]]
    if (from === to || (!withValues && (from === undefined || to === undefined))) return []
    return withValues
      ? { name, ...(from !== undefined && { source: from }), ...(to !== undefined && { target: to }) }
      : { name }
  })
  const what = target.row === undefined ? 'only source' : source.row === undefined ? 'only target' : 'different'
  return { ...about, what, columns }
}

const none = {
  source: 0,
  target: 0,
  onlySource: 0,
  onlyTarget: 0,
  different: 0,
  unsettled: 0,
  transient: 0,
  rechecks: 0,
}

/** A piece that could not be read. */
export function unread({ table }: TableSchema, { first, last }: Place, error: unknown, at: number): ChunkLine {
  return {
    kind: 'chunk',
    table: tableName(table),
    first,
    last,
    at,
    verdict: 'unknown',
    ...none,
    why: told(error),
    unread: true,
  }
}
