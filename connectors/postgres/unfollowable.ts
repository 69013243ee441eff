import { tableName } from '../../src/model.ts'
import { byNumber, isSentAs, sentColumns, unknown } from './shape.ts'
import type { Shape, ShapeColumn } from './source-queries.ts'
import { isRetyped, isWidened, renames } from './changes-between.ts'

/** Why nothing can be followed any more: what a stream of rows does not show, or shows too late. In words, or undefined. `key`: numbers of its columns. */
export function unfollowable(before: Shape, now: Shape, key: readonly number[]): string | undefined {
  if (now.schema !== before.schema || now.name !== before.name) return `it is called ${tableName(now)} now`
  if (now.kind === 'p') return membership(before, now)
  if (now.identity !== before.identity && !(key.length === 0 && isWhole(before) && isWhole(now)))
    return 'its replica identity or key changed'
  const other = lookalike(before, now) ?? exchanged(before, now)
  if (other !== undefined) return other
  const rewritten = now.relfilenode !== before.relfilenode
  const newer = byNumber(now)
  for (const old of before.columns) {
    const column = newer.get(old.number)
    if (column === undefined) {
      if (key.includes(old.number)) return `column ${old.name} of its key was dropped`
      continue
    }
    if (column.generated !== old.generated) return `column ${old.name} is generated at one time, and not at another`
    if (old.generated !== '' && column.expression !== old.expression && column.declared === old.declared)
      if (column.touched !== old.touched) return `the expression of column ${old.name} changed`
    // What was seen in the stream explains as much.
    const altered = old.touched !== unknown && column.touched !== old.touched
    if (rewritten && altered && column.generated === '' && !isExplained(old, column))
      return `its rows were rewritten, and column ${old.name} altered`
    if (key.includes(old.number) && isRetyped(old, column) && !isWidened(old, column))
      return `the type of its key column ${old.name} changed`
  }
  return undefined
}

/** A table that the stream sends as before, and whose columns are others. */
function lookalike(before: Shape, now: Shape): string | undefined {
  const [former, columns] = [sentColumns(before), sentColumns(now)]
  if (former.length !== columns.length) return undefined
  const alike = columns.every(({ name, type, typmod }, i) => {
    const old = former[i]
    return old !== undefined && isSentAs(old, { name, typeOid: type, typmod, key: false })
  })
  const other = columns.find(({ number }, i) => number !== former[i]?.number)
  return alike && other ? `column ${other.name} is another one now: dropped, and added again` : undefined
}

/** Columns that took each other's names: afterwards a table by hand looks as before, so nobody could tell whether it was done there. */
function exchanged(before: Shape, now: Shape): string | undefined {
  const names = new Set(now.columns.map(({ name }) => name))
  const other = renames(before, now).find(({ to }) => !names.has(to))
  return (
    other &&
    `column ${other.column} took the name of another that took its name, without a step that could be followed in between`
  )
}

/** A reason for a column's definition to be touched that changes no value: the rest is a rewrite of the values in place. */
function isExplained(old: ShapeColumn, now: ShapeColumn): boolean {
  return isRetyped(old, now) || old.name !== now.name || old.notNull !== now.notNull || old.missing !== now.missing
}

/** Old rows come whole: those of a table that began without a key need none. */
function isWhole({ identity }: Shape): boolean {
  return identity.startsWith('f')
}

function membership(before: Shape, now: Shape): string | undefined {
  const leaves = new Set(before.leaves)
  return now.leaves.length !== leaves.size || now.leaves.some((leaf) => !leaves.has(leaf))
    ? 'its partitions changed'
    : undefined
}
