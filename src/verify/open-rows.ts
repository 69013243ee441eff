import type { Position } from '../model.ts'
import type { DifferenceLine, Verdict } from './journal.ts'

/** A row that was found different and has not been found equal since, or one of which nothing could be said. Times in ms since 1970. */
export type OpenRow = {
  readonly table: string
  readonly key: readonly (string | null)[]
  readonly verdict: Exclude<Verdict, 'equal'>
  readonly what?: DifferenceLine['what']
  readonly columns: readonly string[]
  readonly copies?: readonly [number, number]
  /** Why nothing could be said. */
  readonly why?: string
  /** Both ends were compared with all applied up to there. */
  readonly position?: Position
  readonly firstSeen: number
  readonly lastSeen: number
  readonly rechecks: number
}
/** One look at a row. */
export type Sight =
  | { readonly verdict: 'equal'; readonly table: string; readonly key: OpenRow['key'] }
  | Omit<OpenRow, 'firstSeen' | 'lastSeen' | 'rechecks'>

/** What survives a restart. `more`: rows that differ and are not among `rows`, which are bounded: how many the last walk that ended told of, and since then. */
export type OpenState = {
  readonly rows: readonly OpenRow[]
  readonly more: { readonly ofWalk: number; readonly since: number }
}

/** Rows that differ, as long as they do. */
export interface OpenRows {
  /** False: a row that could not be settled found no room. One that differs is counted then. */
  saw(sight: Sight, at: number): boolean
  /** A walk over all tables has ended: what it had no room for was counted since the one before. */
  walked(): void
  /** Rows of other tables are nobody's any more. */
  keepOnly(tables: ReadonlySet<string>): void
  readonly state: OpenState
}

export const mostOpen = 500
/** Of a row without a key its whole text is the key. */
const longestName = 8_192

export function openRows({ rows, more }: OpenState = { rows: [], more: { ofWalk: 0, since: 0 } }): OpenRows {
  const open = new Map(rows.map((row) => [nameOf(row), row]))
  let { ofWalk, since } = more
  return {
    saw(sight, at) {
      const name = nameOf(sight)
      const known = open.get(name)
      if (sight.verdict === 'equal') {
        open.delete(name)
        return true
      }
      if (known === undefined) {
        if (open.size >= mostOpen || name.length > longestName) {
          if (sight.verdict === 'different') since++
          return sight.verdict === 'different'
        }
        open.set(name, { ...sight, firstSeen: at, lastSeen: at, rechecks: 0 })
        return true
      }
      // What is known to differ does so until it is seen to be equal.
      const now = known.verdict === 'different' && sight.verdict === 'unknown' ? known : { ...sight, lastSeen: at }
      const firstSeen = known.verdict === now.verdict ? known.firstSeen : at
      open.set(name, { ...now, firstSeen, lastSeen: now === known ? known.lastSeen : at, rechecks: known.rechecks + 1 })
      return true
    },
    walked() {
      ofWalk = since
      since = 0
    },
    keepOnly(tables) {
      for (const [name, { table }] of open) if (!tables.has(table)) open.delete(name)
    },
    get state() {
      return { rows: [...open.values()], more: { ofWalk, since } }
    },
  }
}

function nameOf({ table, key }: Pick<OpenRow, 'table' | 'key'>): string {
  return JSON.stringify([table, ...key])
}
