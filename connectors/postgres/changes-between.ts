import type { TableChange, TableSchema } from '../../src/model.ts'
import { attributesOf, byNumber, sentColumns } from './shape.ts'
import type { Shape, ShapeColumn } from './source-queries.ts'
import { formOf } from './types.ts'

type Rename = Extract<TableChange, { kind: 'rename' }>
/** A name is taken after it was left; where each waits for another, one goes by way of a name that no column has. */
export function renames(before: Shape, after: Shape): readonly Rename[] {
  const older = byNumber(before)
  const names = new Set([...before.columns, ...after.columns].map(({ name }) => name))
  const waiting = after.columns.flatMap(({ number, name: to }): Rename[] => {
    const column = older.get(number)?.name
    return column === undefined || column === to ? [] : [{ kind: 'rename', column, to }]
  })
  const ordered: Rename[] = []
  while (waiting.length > 0) {
    const next = waiting.findIndex(({ to }) => !waiting.some(({ column }) => column === to))
    const [rename] = waiting.splice(Math.max(0, next), 1)
    if (rename === undefined) break
    let passage = `${rename.column}_`
    while (names.has(passage)) passage += '_'
    if (next < 0) waiting.push({ ...rename, column: passage })
    ordered.push(next < 0 ? { ...rename, to: passage } : rename)
  }
  return ordered
}

/** The way from one shape to another by steps in each of which no name is freed and added anew, so that its columns at the target tell whether it was made. */
export function stepsBetween(before: Shape, after: Shape): readonly Shape[] {
  const older = byNumber(before)
  const names = new Set(before.columns.map(({ name }) => name))
  const kept = after.columns.filter(({ number }) => older.has(number))
  const again = after.columns.some(({ number, name }) => !older.has(number) && names.has(name))
  return again ? [{ ...after, columns: kept, attributes: attributesOf(kept) }, after] : [after]
}

/** What was done to a table, in an order in which it can be done again. The two are of one table, and `unfollowable` found nothing. `rewritten`: its rows
 *  may have been written anew meanwhile. */
export function changesBetween(
  before: Shape,
  after: Shape,
  rewritten: boolean = after.relfilenode !== before.relfilenode,
): readonly TableChange[] {
  const older = byNumber(before)
  const newer = byNumber(after)
  const drops = before.columns.filter(({ number }) => !newer.has(number))
  const changes: TableChange[] = drops
    // What is computed of a column goes before it.
    .toSorted((a, b) => b.generated.length - a.generated.length)
    .map(({ name }) => ({ kind: 'drop', column: name }))
  changes.push(...renames(before, after))
  for (const column of after.columns) {
    const old = older.get(column.number)
    if (!old || !isRetyped(old, column)) continue
    const proved = old.generated === '' && isWidened(old, column) && (isRewriting(old) || !rewritten)
    changes.push({ kind: 'retype', column: column.name, from: typeText(old), type: typeText(column), proved })
  }
  const added = after.columns.filter(({ number }) => !older.has(number))
  for (const { name: column, declared: type, collation, missing, expression, needs, generated, gone } of added) {
    if (generated !== '') continue
    changes.push({
      kind: 'add',
      column,
      type,
      ...(collation === null ? {} : { collation }),
      ...(missing === null ? {} : { value: missing }),
      ...(expression === null || needs !== null ? {} : { default: expression }),
      proved: gone === true || missing !== null || !rewritten,
    })
  }
  for (const { name: column, declared: type, collation, expression, needs, generated } of added) {
    if (generated === '') continue
    const collated = collation === null ? {} : { collation }
    const stored = generated === 's'
    changes.push({
      kind: 'compute',
      column,
      type,
      ...collated,
      expression: expression ?? 'NULL',
      stored,
      proved: needs === null,
    })
  }
  for (const { number, name, notNull, generated } of after.columns) {
    const was = older.get(number)?.notNull ?? false
    if (was !== notNull && generated === '') changes.push({ kind: 'nullable', column: name, nullable: !notNull })
  }
  return changes
}

/** The schema after the changes; what only the first look decided (pinning, old rows) stays. */
export function nextSchema(schema: TableSchema, before: Shape, after: Shape): TableSchema {
  const former = sentColumns(before)
  const columns = sentColumns(after)
  const key = schema.key.map((index) => columns.findIndex(({ number }) => number === former[index]?.number))
  return {
    ...schema,
    version: schema.version + 1,
    columns: columns.map(({ name, declared, type, notNull }) => ({
      name,
      type: declared,
      form: formOf(type),
      nullable: !notNull,
    })),
    key,
  }
}

function typeText({ declared, collation }: ShapeColumn): string {
  return collation === null ? declared : `${declared} collate ${collation}`
}

export function isRetyped(old: ShapeColumn, now: ShapeColumn): boolean {
  return old.type !== now.type || old.typmod !== now.typmod || old.collation !== now.collation
}

const integers = [21, 23, 20]
const floats = [700, 701]
const numeric = 1700
const varchar = 1043
const text = 25
/** Every value reads the same under the new type. That a USING clause changed the values can be told only where the plain change writes no row anew. */
export function isWidened(old: ShapeColumn, now: ShapeColumn): boolean {
  if (old.collation !== now.collation) return false
  for (const family of [integers, floats]) {
    const from = family.indexOf(old.type)
    if (from >= 0) return family.indexOf(now.type) > from
  }
  if (old.type === numeric && now.type === numeric && old.typmod >= 0 && now.typmod >= 0) {
    const [from, to] = [old.typmod - 4, now.typmod - 4]
    return (from & 0xffff) === (to & 0xffff) && to >> 16 > from >> 16
  }
  if (old.type === varchar && now.type === varchar)
    return now.typmod < 0 || (old.typmod >= 0 && now.typmod > old.typmod)
  return (old.type === varchar && now.type === text) || (old.type === text && now.type === varchar && now.typmod < 0)
}

function isRewriting({ type }: ShapeColumn): boolean {
  return integers.includes(type) || floats.includes(type)
}
