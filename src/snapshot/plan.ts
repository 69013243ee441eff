import { tableName, type Chunk, type Position, type Range, type TableId, type CopyState } from '../model.ts'

/** How a table is cut; in the state store. A table whose copy starts over gets the next generation, so that its finished chunks no longer count. */
export type TablePlan = { readonly generation: number; readonly ranges: readonly Range[] }

export function chunkId(table: TableId, generation: number, index: number): string {
  return `${tableName(table)}#${generation}.${index}`
}

/** Chunks of one table that are not done, under this snapshot. */
export function missingChunks(
  plan: TablePlan,
  done: ReadonlySet<string>,
  snapshot: Position,
  replace: boolean,
): readonly Chunk[] {
  return plan.ranges
    .map((range, index) => ({ ...range, id: chunkId(range.table, plan.generation, index), snapshot, replace }))
    .filter(({ id }) => !done.has(id))
}

/** Rows of the chunks that are done; those of a generation before do not count. */
export function rowsLoaded(plan: TablePlan, { done, loaded }: Pick<CopyState, 'done' | 'loaded'>): number {
  const own = new Set(plan.ranges.map(({ table }, index) => chunkId(table, plan.generation, index)))
  return done.reduce((sum, id, i) => (own.has(id) ? sum + (loaded[i] ?? 0) : sum), 0)
}

/** Largest tables first, so that the last worker is not left with a long one; before them those that were rewritten under an earlier snapshot:
 *  the sooner they are read after the snapshot, the less likely it happens again. */
export function inOrder(
  tables: readonly { readonly generation: number; readonly chunks: readonly Chunk[] }[],
): readonly Chunk[] {
  const rows = (chunks: readonly Chunk[]): number => chunks.reduce((sum, { estimatedRows }) => sum + estimatedRows, 0)
  return tables
    .toSorted((a, b) => b.generation - a.generation || rows(b.chunks) - rows(a.chunks))
    .flatMap(({ chunks }) => chunks)
}
