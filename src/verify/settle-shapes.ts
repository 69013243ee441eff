import { setTimeout as sleep } from 'node:timers/promises'
import { isDeepStrictEqual } from 'node:util'
import type { Sink, Source } from '../connector.ts'
import { tableName, type TableSchema } from '../model.ts'
import type { ShapesLine } from './journal.ts'
import type { Witness } from './settle.ts'
import { compareShapes, isMovable, verdictOfShapes, type ShapeDifference, type Situation } from './shapes.ts'
import { told } from './told.ts'

export type ShapeEnds = {
  readonly source: Pick<Source, 'shape' | 'tables' | 'versions'>
  readonly sink: Pick<Sink, 'shape'>
}
/** Times in ms. A table's change takes effect some moments behind its commit: a difference of columns has to last for `lastsMs`. */
export type ShapeLimits = { readonly limitMs: number; readonly lastsMs: number; readonly pollMs: number }
export const shapeLimits: Omit<ShapeLimits, 'limitMs'> = { lastsMs: 3_000, pollMs: 300 }

/** What differs between what the tables are made of at both ends. A change of a table that is on its way is waited for, as rows are (H20): a difference of
 *  columns counts once it was there before and after all that was visible at the source has been applied, and the stream had met all changes of the table
 *  before. What cannot be read, or is not settled in time, is unknown. */
export async function settleShapes(
  { source, sink }: ShapeEnds,
  tables: readonly TableSchema[],
  witness: Witness,
  situation: Situation,
  { limitMs, lastsMs, pollMs }: ShapeLimits,
  signal: AbortSignal,
): Promise<ShapesLine> {
  const line = (verdict: ShapesLine['verdict'], differences: readonly ShapeDifference[], why?: string): ShapesLine => ({
    kind: 'shapes',
    at: Date.now(),
    verdict,
    differences,
    ...(why !== undefined && { why }),
  })
  if (source.shape === undefined || sink.shape === undefined)
    return line('unknown', [], `the ${source.shape ? 'target' : 'source'} does not tell what its tables are made of`)
  const limit = AbortSignal.timeout(limitMs)
  const until = AbortSignal.any([signal, limit])
  const look = async (): Promise<readonly ShapeDifference[]> => {
    const target = (await sink.shape?.(tables, signal)) ?? []
    return compareShapes((await source.shape?.(tables, signal)) ?? [], target, situation)
  }
  let found: readonly ShapeDifference[]
  try {
    found = await look()
  } catch (error) {
    if (signal.aborted) throw error
    return line('unknown', [], told(error))
  }
  let waitsFor = 'the target is behind'
  try {
    // By what they are: when they were seen first.
    let open = since(found, new Map(), performance.now())
    while (open.size > 0) {
      const unmet = situation.streams ? await unmetIn(source, tables, until) : new Set<string>()
      await witness.applied(await witness.visible(until), until)
      found = await look()
      const now = performance.now()
      open = since(found, open, now)
      const under = found.filter(isMovable)
      const waits = under.filter(
        (one) => unmet.has(one.table) || now - (open.get(JSON.stringify(one)) ?? now) < lastsMs,
      )
      if (waits.length === 0) break
      waitsFor = waits.some(({ table }) => unmet.has(table))
        ? 'the pipeline has not met a change of the table at the source'
        : 'it changed too often'
      await sleep(pollMs, undefined, { signal: until })
    }
  } catch (error) {
    if (signal.aborted) throw error
    const why = limit.aborted ? `it is not known whether it is on its way: ${waitsFor}` : told(error)
    found = found.map((one) => (isMovable(one) ? { ...one, severity: 'unknown', why } : one))
  }
  return line(verdictOfShapes(found), found)
}

function since(
  found: readonly ShapeDifference[],
  before: ReadonlyMap<string, number>,
  now: number,
): ReadonlyMap<string, number> {
  return new Map(
    found.filter(isMovable).map((one) => {
      const key = JSON.stringify(one)
      return [key, before.get(key) ?? now]
    }),
  )
}

/** Tables that the source's stream has not met as they are now. */
async function unmetIn(
  source: ShapeEnds['source'],
  tables: readonly TableSchema[],
  signal: AbortSignal,
): Promise<ReadonlySet<string>> {
  const names = new Set(tables.map(({ table }) => tableName(table)))
  const met = new Map((await source.versions?.(signal))?.map((schema) => [tableName(schema.table), schema.columns]))
  const now = await source.tables((table) => names.has(tableName(table)), signal)
  const unmet = now.filter(({ table, columns }) => {
    const known = met.get(tableName(table))
    return known !== undefined && !isDeepStrictEqual(known, columns)
  })
  return new Set(unmet.map(({ table }) => tableName(table)))
}
