import { comparePositions, origin, type Position } from '../model.ts'
import type { Verdict } from './journal.ts'
import type { OpenState } from './open-rows.ts'
import type { Report } from './report.ts'

/** What the last reading of a whole table came to. `different`: all of it was read, and rows that were not equal are open, or were found equal since. `at`: when its oldest piece was read, in ms since 1970. `asOf`: the target had applied everything up to
 *  there before the first piece was read; absent: nobody knows. */
export type TableCover = {
  readonly verdict: Verdict
  readonly why?: string
  readonly at: number
  readonly asOf?: Position
  readonly rows: number
}
/** Every change in (`after`, `upTo`] was looked at once it was applied; but of a table in `gaps` none up to there counts. */
export type Stretch = {
  readonly after: Position
  readonly upTo: Position
  readonly gaps: Readonly<Record<string, Position>>
}
export type Coverage = {
  readonly tables: ReadonlyMap<string, TableCover>
  readonly open: OpenState
  /** Absent: changes are not followed. */
  readonly changes?: Stretch | undefined
}
/** `oldest`: when the part that was read longest ago was read, in ms since 1970. */
export type Standing = { readonly verdict: Verdict; readonly why?: string; readonly oldest?: number }

/** Whether all of `tables` are verified to hold at the target what the source held at `position` or later: each was read whole and found equal, or its rows
 *  that differed were found equal since; and every change between that reading and `position` was looked at too. Without a position: whether all was
 *  found equal when it was read last. */
export function standing(
  { tables: covers, open, changes }: Coverage,
  tables: readonly string[],
  position?: Position,
): Standing {
  const ages = tables.flatMap((table) => covers.get(table)?.at ?? [])
  const answer = (verdict: Verdict, why?: string): Standing => ({
    verdict,
    ...(why !== undefined && { why }),
    ...(ages.length > 0 && { oldest: Math.min(...ages) }),
  })
  const different = open.rows.filter(({ verdict }) => verdict === 'different').length
  const differ = different + open.more.ofWalk + open.more.since
  if (differ > 0) return answer('different', differ === 1 ? '1 row differs' : `${differ} rows differ`)
  if (tables.length === 0) return answer('unknown', 'there is no table')
  for (const table of tables) {
    const cover = covers.get(table)
    if (cover === undefined) return answer('unknown', `${table} was not read to its end yet`)
    if (cover.verdict === 'unknown') return answer('unknown', `${table}: ${cover.why ?? 'not all of it could be read'}`)
  }
  const [doubtful] = open.rows
  if (doubtful !== undefined)
    return answer('unknown', `a row of ${doubtful.table} could not be settled: ${doubtful.why ?? 'it changes'}`)
  if (position === undefined) return answer('equal')
  for (const table of tables) {
    const asOf = covers.get(table)?.asOf ?? origin
    if (comparePositions(asOf, position) >= 0) continue
    if (changes === undefined) return answer('unknown', `changes of ${table} since it was read are not followed`)
    if (comparePositions(changes.upTo, position) < 0)
      return answer('unknown', `changes after ${changes.upTo} have not been looked at yet`)
    const gap = changes.gaps[table] ?? origin
    const from = comparePositions(gap, changes.after) > 0 ? gap : changes.after
    if (comparePositions(asOf, from) < 0)
      return answer('unknown', `changes of ${table} up to ${from} were not all looked at, and it was not read since`)
  }
  return answer('equal')
}

/** Of a table whose pieces are all in the report; undefined of one that is not read to its end. `full`: not every row in doubt could be kept open. */
export function coverOf({ tables, chunks }: Report, name: string, full: boolean): TableCover | undefined {
  const table = tables.find((one) => one.table === name)
  if (table === undefined || table.rangesDone < table.ranges) return undefined
  const pieces = chunks.filter((chunk) => chunk.table === name)
  const places = pieces.map(({ asOf }) => asOf ?? origin)
  const asOf = places.reduce(
    (least, place) => (comparePositions(place, least) < 0 ? place : least),
    places[0] ?? origin,
  )
  const unread = table.ranges === 0 || pieces.some((piece) => piece.unread === true)
  const unequal = pieces.some(({ verdict }) => verdict !== 'equal')
  return {
    verdict: unread || (full && table.unsettled > 0) ? 'unknown' : unequal ? 'different' : 'equal',
    ...(table.why !== undefined && { why: table.why }),
    at: Math.min(Date.now(), ...pieces.map(({ at }) => at)),
    ...(asOf !== origin && { asOf }),
    rows: table.source,
  }
}
