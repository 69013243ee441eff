import type pg from 'pg'
import type { Range, TableId } from '../../src/model.ts'
import { Failure } from '../../src/errors.ts'
import { ident, literal, qualified } from './queries.ts'
import type { CatalogColumn } from './schema.ts'

/** Base types whose order is the same at every server. An enum's is that of its labels, which may differ. */
const ordered: ReadonlySet<number> = new Set([16, 17, 20, 21, 23, 26, 700, 701, 1082, 1083, 1114, 1184, 1700, 2950])
const texts: ReadonlySet<number> = new Set([19, 25, 1042, 1043])
/** Orders by bytes, whatever library the server has. */
const byBytes: ReadonlySet<string> = new Set(['C', 'POSIX', 'pg_catalog."C"', 'pg_catalog."POSIX"'])

/** Whether this key sorts alike at any two servers, so that a range is the same rows at both. */
export function isRangeable(key: readonly CatalogColumn[]): boolean {
  return (
    key.length > 0 &&
    key.every((column) => {
      if (texts.has(column.base.oid)) return column.collation !== undefined && byBytes.has(column.collation.name)
      return ordered.has(column.base.oid)
    })
  )
}

/** The rows of a range, as a condition on `alias`; `true` for the whole table. Bounds are JSON arrays of the key's texts. */
export function rangeCondition(range: Range, key: readonly CatalogColumn[], alias: string): string {
  const left = `(${key.map((column) => `${alias}.${ident(column.name)}`).join(', ')})`
  const parts: string[] = []
  if (range.from !== undefined) parts.push(`${left} >= ${bound(range.from, key)}`)
  if (range.to !== undefined) parts.push(`${left} < ${bound(range.to, key)}`)
  return parts.length === 0 ? 'true' : parts.join(' and ')
}

function bound(text: string, key: readonly CatalogColumn[]): string {
  const values: unknown = JSON.parse(text)
  if (!Array.isArray(values) || values.length !== key.length)
    throw new Failure('BUG', { object: 'range', observed: `a bound of another key`, needed: `${key.length} values` })
  return `(${key.map((column, i) => `${literal(String(values[i]))}::${column.castType}`).join(', ')})`
}

/** Pages to look at for each range wanted: rows of one page often lie together in key order. */
const pagesPerRange = 20

/** Into how many ranges a table is cut. */
export function rangesOf(rows: number, estimatedRows: number): number {
  return Math.max(1, Math.min(Math.round(estimatedRows / rows), 100_000))
}

/**
 * Bounds between ranges of about `rows` rows, in order. A sample of pages decides, so a table of any size costs a few
 * thousand page reads; a small one is sorted whole. Run in the reader's transaction.
 */
export async function readBounds(
  client: pg.ClientBase,
  table: TableId,
  key: readonly CatalogColumn[],
  rows: number,
  estimatedRows: number,
): Promise<readonly string[]> {
  const ranges = rangesOf(rows, estimatedRows)
  const name = qualified(table)
  const size = await client.query<{ pages: number }>(
    `select (pg_relation_size(${literal(name)}::regclass) / current_setting('block_size')::int)::float8 as pages`,
  )
  const pages = size.rows[0]?.pages ?? 0
  const percent = pages === 0 ? 100 : (100 * pagesPerRange * ranges) / pages
  const sample = percent >= 50 ? '' : `tablesample system (${percent.toFixed(6)}) repeatable (1)`
  const columns = key.map((column) => `t.${ident(column.name)}`).join(', ')
  const texts = key.map((column) => `t.${ident(column.name)}::text as k${column.attnum}`).join(', ')
  const bounds = await client.query<{ bound: string }>(
    `select json_build_array(${key.map((column) => `k${column.attnum}`).join(', ')})::text as bound
       from (select ${texts}, row_number() over (order by ${columns}) - 1 as place, count(*) over () as total
               from only ${name} t ${sample}) s
      where place > 0 and place * ${ranges} / total <> (place - 1) * ${ranges} / total
      order by place`,
  )
  return bounds.rows.map((row) => row.bound)
}
