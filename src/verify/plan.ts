import type { Range } from '../model.ts'
import type { ChunkLine, Planned } from './journal.ts'

/** How long the statements of a piece should take, in ms: long enough to be worth its round trips, short enough for the snapshot it holds. */
const aimMs = 1_000
/** Rows of the first piece of a table, of which nobody knows yet what a row costs. */
const firstRows = 20_000

/** Ranges that are compared in one go. */
export type Piece = { readonly table: number; readonly first: number; readonly last: number; readonly rows: number }

/** Hands out the ranges of all tables, neighbours together as they are worth it. */
export interface Work {
  /** The next piece; undefined when all are handed out. */
  take(): Piece | undefined
  /** What it took. */
  done(piece: Piece, rows: number, ms: number): void
  /** Rows that a statement should read of this table, by what was seen so far. */
  rowsAtOnce(table: number): number
}

/** `done`: pieces of an earlier run. `mostRows`: of one piece. */
export function workOf(tables: readonly Planned[], done: readonly ChunkLine[], mostRows: number): Work {
  const left = tables.map(({ ranges }) => ranges.map(() => true))
  const byName = new Map(tables.map(({ table }, i) => [table, i]))
  for (const { table, first, last } of done) {
    const open = left[byName.get(table) ?? -1]
    for (let i = first; i <= last; i++) if (open) open[i] = false
  }
  const cost = tables.map(() => ({ rows: 0, ms: 0 }))
  const rowsAtOnce = (table: number): number => {
    const { rows, ms } = cost[table] ?? { rows: 0, ms: 0 }
    return Math.max(1, Math.min(mostRows, rows === 0 ? firstRows : Math.round((aimMs * rows) / Math.max(1, ms))))
  }
  const at = tables.map(() => 0)
  return {
    take() {
      for (const [table, { ranges }] of tables.entries()) {
        const open = left[table] ?? []
        while ((at[table] ?? 0) < open.length && open[at[table] ?? 0] !== true) at[table] = (at[table] ?? 0) + 1
        const first = at[table] ?? 0
        if (first === open.length) continue
        const most = rowsAtOnce(table)
        let last = first
        let rows = ranges[first]?.estimatedRows ?? 0
        while (open[last + 1] === true && rows + (ranges[last + 1]?.estimatedRows ?? 0) <= most)
          rows += ranges[++last]?.estimatedRows ?? 0
        at[table] = last + 1
        return { table, first, last, rows }
      }
      return undefined
    },
    done({ table }, rows, ms) {
      const sum = cost[table]
      if (sum === undefined) return
      sum.rows += rows
      sum.ms += ms
    },
    rowsAtOnce,
  }
}

/** Neighbours as one range. */
export function joined(ranges: readonly Range[], first: number, last: number): Range {
  const [from, to] = [ranges[first]?.from, ranges[last]?.to]
  const table = ranges[first]?.table ?? { schema: '', name: '' }
  const estimatedRows = ranges.slice(first, last + 1).reduce((sum, range) => sum + range.estimatedRows, 0)
  return { table, estimatedRows, ...(from !== undefined && { from }), ...(to !== undefined && { to }) }
}
