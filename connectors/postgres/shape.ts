import type { TableSchema } from '../../src/model.ts'
import type { Relation } from './pgoutput.ts'
import type { PublishedRow, Shape, ShapeColumn } from './source-queries.ts'

export type SentColumn = Relation['columns'][number]
/** Columns as a Relation message has them. */
export function sentColumns(shape: Pick<Shape, 'columns'>): readonly ShapeColumn[] {
  return shape.columns.filter(({ generated }) => generated === '')
}

const letters = { default: 'd', nothing: 'n', full: 'f', index: 'i' } as const

/** Whether the stream sends the table as it is recorded here; in words what is not so. */
export function relationDifference(relation: Relation, shape: Shape): string | undefined {
  if (!shape.identity.startsWith(letters[relation.identity])) return 'its replica identity changed'
  const columns = sentColumns(shape)
  const same = columns.every((column, i) => isSentAs(column, relation.columns[i]))
  if (!same || columns.length !== relation.columns.length) return 'other columns'
  if (relation.identity !== 'default' && relation.identity !== 'index') return undefined
  const key = keyNumbers(shape)
  const sent = relation.columns.flatMap(({ key }, i) => (key ? [columns[i]?.number ?? 0] : []))
  return sent.length === key.length && sent.every((number) => key.includes(number))
    ? undefined
    : 'its key columns changed'
}

export function isSentAs(column: ShapeColumn, sent: Relation['columns'][number] | undefined): boolean {
  return column.name === sent?.name && column.type === sent.typeOid && column.typmod === sent.typmod
}

function keyNumbers({ identity }: Shape): readonly number[] {
  return (identity.slice(2).match(/\d+/g) ?? []).map(Number)
}

/** In place of a transaction, where a column was touched nobody knows when. */
export const unknown = ''

export function attributesOf(columns: readonly ShapeColumn[]): PublishedRow['attributes'] {
  return sentColumns({ columns }).map(({ number, name, type, typmod, declared }) => [
    number,
    name,
    type,
    typmod,
    declared,
  ])
}

/** Numbers of the columns by which changes of the table are identified, as the catalog shows it; none: it has no key. */
export function keyInCatalog(shape: Shape): readonly number[] {
  const numbers = keyNumbers(shape)
  const columns = byNumber(shape)
  return numbers.every((number) => columns.get(number)?.generated === '') ? numbers : []
}

/** Numbers of the columns of the schema's key. */
export function keyOf(schema: TableSchema, shape: Shape): readonly number[] {
  const columns = sentColumns(shape)
  return schema.key.map((index) => columns[index]?.number ?? 0)
}

export function byNumber({ columns }: Pick<Shape, 'columns'>): ReadonlyMap<number, ShapeColumn> {
  return new Map(columns.map((column) => [column.number, column]))
}
