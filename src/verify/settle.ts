import { hash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { TableReader } from '../connector.ts'
import { asFailure, Failure } from '../errors.ts'
import type { Position, TableSchema } from '../model.ts'
import { rowsOf } from '../rows.ts'
import { told } from './told.ts'
import { asBuffer, cellsOf, spans, texts, type Ends, type Suspect } from './compare.ts'

/** What says how far each end is. Both wait as long as it takes. */
export interface Witness {
  /** Resolves once a new reader of the source sees all that anyone may have seen of it before the call, to a place at or after that. */
  visible(signal: AbortSignal): Promise<Position>
  /** Resolves once the target holds everything the source committed up to `position`. */
  applied(position: Position, signal: AbortSignal): Promise<void>
}
/** `different`: the source held `source` over the whole time in which the target held `target`, though it had applied all that came before. `same`: both
 *  ends held the same after all; it was under way. `unknown`: neither could be said, `why`. */
export type Settled =
  | { readonly kind: 'same'; readonly suspect: Suspect; readonly rechecks: number }
  | { readonly kind: 'unknown'; readonly suspect: Suspect; readonly rechecks: number; readonly why: string }
  | Difference
/** `source`, `target`: the row's texts, absent where there is none; of a table without a key, in how many copies. `position`: both ends were compared
 *  with all applied up to there. */
export type Difference = {
  readonly kind: 'different'
  readonly suspect: Suspect
  readonly rechecks: number
  readonly position: Position
  readonly source: Found
  readonly target: Found
}
/** `versions`: the same as long as nobody has written to the row, or to any of the copies. */
export type Found = { readonly row?: readonly (string | null)[]; readonly copies: number; readonly versions: string }

/** Tells for each row whether it differs, by reading it again and again (H20): at both ends; then, once all that the source's log holds by now is visible
 *  there and applied at the target, at both ends again. What differs then, and was touched at neither end in between, differs: the last change before the
 *  place that was visible and applied is what the source shows, and the target would have been touched by it. A row that reads alike is the same.
 *  Anything else is asked again until `limitMs` has passed, and then unknown. The rows of a call share every wait. A row that changes faster than the wait
 *  takes is looked at all through the next one: it is the same once an end shows what the other has shown since the first look. */
export async function settle(
  ends: Ends,
  schema: TableSchema,
  suspects: readonly Suspect[],
  witness: Witness,
  limitMs: number,
  signal: AbortSignal,
): Promise<readonly Settled[]> {
  const size = await rowsAtOnce(ends, schema, suspects, signal)
  const settled: Settled[] = []
  for (let from = 0; from < suspects.length; from += size)
    settled.push(...(await settleSome(ends, schema, suspects.slice(from, from + size), witness, limitMs, signal)))
  return settled
}

/** Characters of rows that are held of one reading; four readings are at a time. */
const mostHeld = 16 << 20
/** Rows that are looked at to learn how large they are. */
const sampled = 4

async function rowsAtOnce(
  ends: Ends,
  schema: TableSchema,
  suspects: readonly Suspect[],
  signal: AbortSignal,
): Promise<number> {
  if (suspects.length <= sampled) return sampled
  const sample = suspects.slice(0, sampled)
  const found = [
    ...(await readRows(ends.source, schema, sample, signal)),
    ...(await readRows(ends.target, schema, sample, signal)),
  ]
  const lengths = found.map(({ row }) => row?.reduce((sum, text) => sum + (text?.length ?? 0), 0) ?? 0)
  return Math.max(1, Math.floor(mostHeld / Math.max(1, ...lengths)))
}

async function settleSome(
  ends: Ends,
  schema: TableSchema,
  suspects: readonly Suspect[],
  witness: Witness,
  limitMs: number,
  signal: AbortSignal,
): Promise<readonly Settled[]> {
  const settled: Settled[] = []
  let open = suspects
  let rechecks = 0
  let why = 'it changed too often to be read at both ends between two changes'
  const limit = AbortSignal.timeout(limitMs)
  const until = AbortSignal.any([signal, limit])
  /** What takes long is why nothing can be said. */
  const during = async <T>(reason: string, work: () => Promise<T>): Promise<T> => {
    const former = why
    why = reason
    const result = await work()
    why = former
    return result
  }
  const visible = async (): Promise<Position> =>
    await during('a commit at the source that is in its log was not visible', async () => await witness.visible(until))
  const read = async (reader: TableReader): Promise<readonly Found[]> =>
    await during('reading it took too long', async () => await readRows(reader, schema, open, until))
  let before: readonly Found[] = []
  let seen: readonly Found[] = []
  const keep = (left: readonly number[], target: readonly Found[], source: readonly Found[]): void => {
    open = left.flatMap((i) => open[i] ?? [])
    before = left.flatMap((i) => target[i] ?? [])
    seen = left.flatMap((i) => source[i] ?? [])
  }
  try {
    before = await read(ends.target)
    seen = await read(ends.source)
    const apart: number[] = []
    for (const [i, suspect] of open.entries()) {
      if (isSame(seen[i] ?? nothing, before[i] ?? nothing)) settled.push({ kind: 'same', suspect, rechecks })
      else apart.push(i)
    }
    keep(apart, before, seen)
    while (open.length > 0) {
      until.throwIfAborted()
      const watching = rechecks > 0 && schema.key.length > 0 ? watch(ends, schema, open, until) : undefined
      let position: Position
      try {
        position = await visible()
        await during('the target had not applied what was seen at the source', async () => {
          await witness.applied(position, until)
        })
      } finally {
        await watching?.end()
      }
      const now = await read(ends.target)
      const again = await read(ends.source)
      rechecks++
      const left: number[] = []
      for (const [i, suspect] of open.entries()) {
        const row = { first: seen[i], target: [before[i], now[i]], last: again[i] }
        const verdict = watching?.met(i) === true ? 'same' : judge(row.first, row.target[0], row.target[1], row.last)
        if (verdict === 'again') left.push(i)
        else if (verdict === 'same') settled.push({ kind: 'same', suspect, rechecks })
        else {
          const source = again[i] ?? nothing
          const target = now[i] ?? nothing
          settled.push({ kind: 'different', suspect, rechecks, position, source, target })
        }
      }
      keep(left, now, again)
    }
  } catch (error) {
    if (signal.aborted) throw error
    if (!limit.aborted && asFailure(error).policy === 'retry') throw error
    why = limit.aborted ? withCause(why, error) : told(error)
    for (const suspect of open) settled.push({ kind: 'unknown', suspect, rechecks, why })
  }
  return settled
}

const nothing: Found = { copies: 0, versions: '' }

/** Of one row: source, target, target and source, read in the order target, source, target, source. */
export function judge(
  first: Found = nothing,
  before: Found = nothing,
  now: Found = nothing,
  last: Found = nothing,
): 'same' | 'different' | 'again' {
  if (isSame(last, now) || isSame(first, now)) return 'same'
  return first.versions === last.versions && before.versions === now.versions ? 'different' : 'again'
}

export function isSame(a: Found, b: Found): boolean {
  if (a.copies !== b.copies) return false
  if (a.row === undefined || b.row === undefined) return a.row === b.row
  return a.row.every((text, i) => text === b.row?.[i])
}

/** Why something was not known in time, and what was known of the cause. */
export function withCause(why: string, error: unknown): string {
  const observed = error instanceof Failure ? error.facts.observed : undefined
  return observed === undefined ? why : `${why}: ${observed}`
}

/** States that are kept at a time. */
const mostStates = 100_000
const shortestPauseMs = 10

/** Reads rows at both ends again and again, for a fifth of the time, until it is ended. */
function watch(
  ends: Ends,
  schema: TableSchema,
  suspects: readonly Suspect[],
  signal: AbortSignal,
): { readonly met: (i: number) => boolean; end(): Promise<void> } {
  const met = new Set<number>()
  const shown = { source: suspects.map(() => new Set<string>()), target: suspects.map(() => new Set<string>()) }
  const ended = new AbortController()
  const resting = AbortSignal.any([signal, ended.signal])
  let states = 0
  const look = async (end: 'source' | 'target', other: 'source' | 'target'): Promise<void> => {
    while (met.size < suspects.length && !ended.signal.aborted) {
      const began = performance.now()
      for (const [i, found] of (await readRows(ends[end], schema, suspects, signal)).entries()) {
        if (met.has(i)) continue
        const state = hash('sha256', JSON.stringify([found.copies, found.row]), 'base64')
        if (shown[other][i]?.has(state) === true) met.add(i)
        shown[end][i]?.add(state)
        states++
      }
      if (states > mostStates) {
        states = 0
        for (const each of [...shown.source, ...shown.target]) each.clear()
      }
      const pause = Math.max(shortestPauseMs, 4 * (performance.now() - began))
      await sleep(pause, undefined, { signal: resting }).catch(() => {})
      signal.throwIfAborted()
    }
  }
  const looks = Promise.allSettled([look('source', 'target'), look('target', 'source')])
  return {
    met: (i) => met.has(i),
    async end() {
      ended.abort()
      for (const one of await looks) if (one.status === 'rejected') throw one.reason
    },
  }
}

const keysAtOnce = 500

/** The rows as they are now, in the order of the suspects. */
export async function readRows(
  reader: TableReader,
  schema: TableSchema,
  suspects: readonly Suspect[],
  signal: AbortSignal,
): Promise<readonly Found[]> {
  const found: Found[] = []
  const all = schema.columns.map((_, i) => i)
  for (let from = 0; from < suspects.length; from += keysAtOnce) {
    const some = suspects.slice(from, from + keysAtOnce)
    const keys = rowsOf(some.map(({ key }) => cellsOf(key)))
    if (schema.key.length === 0) {
      const copies = await reader.copies(schema, keys, signal)
      some.forEach(({ key }, i) => {
        const versions = copies[i] ?? []
        found.push({ row: key, copies: versions.length, versions: versions.join('\n') })
      })
      continue
    }
    const rows = await reader.lookup(schema, keys, signal)
    if (rows.count !== some.length)
      throw new Failure('TARGET_SHAPE', {
        observed: `${rows.count} rows with ${some.length} keys`,
        needed: 'a unique index on the key',
      })
    let i = 0
    for (const [start, end] of spans({ ...rows, bytes: asBuffer(rows) })) {
      const versions = rows.versions[i++] ?? ''
      found.push(start === end ? nothing : { row: texts(schema, rows, start, end, all), copies: 1, versions })
    }
  }
  return found
}

/** For ends that nothing moves between: a copy that is complete, after which nothing is captured. */
export function stillness(visible: Witness['visible']): Witness {
  return { visible, applied: async () => {} }
}
