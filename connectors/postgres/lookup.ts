import type pg from 'pg'
import { Failure } from '../../src/errors.ts'
import { tableName, type TableSchema } from '../../src/model.ts'
import { readImage, type Rows } from '../../src/rows.ts'
import { ident, literal, qualified } from './queries.ts'
import type { Keyed } from './ranges.ts'
import { equals } from './statements.ts'
import { cellText, textOf } from './types.ts'

/** Of a row `t`: another one after every change. */
const version = `t.xmin::text || ' ' || t.ctid::text`

/** The rows of these keys in the same order, each after its version; a line of nulls where there is none. */
export function lookupQuery(schema: TableSchema, { columns, key }: Keyed, keys: Rows): string {
  if (key.length === 0)
    throw new Failure('BUG', { object: tableName(schema.table), observed: 'a lookup without a key' })
  const names = key.map((column) => `k${column.attnum}`)
  const values: string[] = []
  for (let i = 0; i < keys.count; i++) {
    const cells = readImage(keys.bytes, keys.starts[i] ?? 0, keys.starts[i + 1] ?? 0)
    // The key's cells alone, in key order, or a whole row's.
    const ofKey = cells.length === key.length ? cells : schema.key.map((index) => cells[index])
    const texts = key.map((column, at) => {
      const cell = ofKey[at]
      if (!cell)
        throw new Failure('BUG', {
          object: tableName(schema.table),
          observed: `no value for key column ${column.name}`,
        })
      return literal(cellText(schema.columns[schema.key[at] ?? 0]?.form ?? 'text', cell))
    })
    values.push(`(${[i, ...texts].join(', ')})`)
  }
  const cells = columns.map((column) => textOf(column, `t.${ident(column.name)}`)).join(', ')
  const on = key
    .map((column) => `t.${ident(column.name)} ${equals(column)} v.k${column.attnum}::${column.castType}`)
    .join(' and ')
  const from =
    values.length === 0
      ? `(select 0, ${names.map(() => 'null::text').join(', ')} where false)`
      : `(values ${values.join(', ')})`
  return `select ${version}, ${cells} from ${from} v (i, ${names.join(', ')}) left join only ${qualified(schema.table)} t on ${on} order by v.i`
}

/** The versions of all rows that print as each of these does. Reads the whole table. */
export async function selectCopies(
  client: pg.ClientBase,
  schema: TableSchema,
  { columns }: Keyed,
  rows: Rows,
): Promise<readonly (readonly string[])[]> {
  const wanted = Array.from({ length: rows.count }, (_, i) => {
    const cells = readImage(rows.bytes, rows.starts[i] ?? 0, rows.starts[i + 1] ?? 0)
    const texts = cells.map((cell, at) => (cell ? literal(cellText(schema.columns[at]?.form ?? 'text', cell)) : 'null'))
    return `(${i}, array[${texts.join(', ')}]::pg_catalog.text[])`
  })
  const found: string[][] = wanted.map(() => [])
  if (wanted.length === 0) return found
  const texts = columns.map((column) => textOf(column, `t.${ident(column.name)}`)).join(', ')
  const { rows: copies } = await client.query<{ i: number; version: string }>(
    `select v.i, ${version} as version
       from only ${qualified(schema.table)} t
       join (values ${wanted.join(', ')}) v (i, texts) on array[${texts}]::pg_catalog.text[] = v.texts collate "C"
      order by 1, 2`,
  )
  for (const copy of copies) found[copy.i]?.push(copy.version)
  return found
}
