import type pg from 'pg'
import type { Range, TableId } from '../../src/model.ts'
import { Failure } from '../../src/errors.ts'
import { hashOf } from './digest.ts'
import { ident, literal, qualified } from './queries.ts'
import type { CatalogColumn } from './schema.ts'
import { textOf } from './types.ts'

/** Base types whose order is the same at every server. An enum's is that of its labels, which may differ. */
const ordered: ReadonlySet<number> = new Set([16, 17, 20, 21, 23, 26, 700, 701, 1082, 1083, 1114, 1184, 1700, 2950])
const texts: ReadonlySet<number> = new Set([19, 25, 1042, 1043])
/** Orders by bytes, whatever library the server has. */
const byBytes: ReadonlySet<string> = new Set(['C', 'POSIX', 'pg_catalog."C"', 'pg_catalog."POSIX"'])

/** A table's columns and key, in the order of the schema both ends are compared by. */
export type Keyed = { readonly columns: readonly CatalogColumn[]; readonly key: readonly CatalogColumn[] }

/** Whether this key sorts alike at any two servers, so that a range is the same rows at both. */
export function isRangeable(key: readonly CatalogColumn[]): boolean {
  return key.length > 0 && key.every(sortsAlike)
}

function sortsAlike(column: CatalogColumn): boolean {
  if (texts.has(column.base.oid)) return column.collation !== undefined && byBytes.has(column.collation.name)
  return ordered.has(column.base.oid)
}

/** One of the values that a table is ordered by, of the rows `t`. */
type Place = { readonly sql: string; readonly text: string; readonly cast: string }

/** What a table's rows are ordered by so that a range of it is the same rows at both ends: its key, where need be as bytes of its text, which no index
 *  helps to find; without a key the hash of the whole row. */
function placesOf({ columns, key }: Keyed): readonly Place[] {
  if (key.length === 0) {
    const sql = hashOf(columns, 't')
    return [{ sql, text: `${sql}::text`, cast: 'pg_catalog.bytea' }]
  }
  return key.map((column) => {
    const name = `t.${ident(column.name)}`
    const text = textOf(column, name)
    return sortsAlike(column)
      ? { sql: name, text, cast: column.castType }
      : { sql: `${text} collate "C"`, text, cast: 'pg_catalog.text' }
  })
}

/** The rows of a range, as a condition on `t`; `true` for the whole table. Bounds are JSON arrays of texts. */
export function rangeCondition(range: Range, keyed: Keyed): string {
  if (range.from === undefined && range.to === undefined) return 'true'
  const places = placesOf(keyed)
  const left = `(${places.map(({ sql }) => sql).join(', ')})`
  const parts: string[] = []
  if (range.from !== undefined) {
    const above = `${left} >= ${bound(range.from, places)}`
    // Of a target's key that takes NULL: such rows belong to the last range.
    const takesNull = range.to === undefined && keyed.key.some(({ notNull }) => !notNull)
    parts.push(takesNull ? `(${above}) is not false` : above)
  }
  if (range.to !== undefined) parts.push(`${left} < ${bound(range.to, places)}`)
  return parts.join(' and ')
}

function bound(text: string, places: readonly Place[]): string {
  const values: unknown = JSON.parse(text)
  if (!Array.isArray(values) || values.length !== places.length)
    throw new Failure('BUG', { object: 'range', observed: `a bound of another key`, needed: `${places.length} values` })
  return `(${places.map(({ cast }, i) => `${literal(String(values[i]))}::${cast}`).join(', ')})`
}

/** The ranges between bounds that lie in a range, in order. */
export function between(range: Range, bounds: readonly string[], estimatedRows: number): readonly Range[] {
  return Array.from({ length: bounds.length + 1 }, (_, i) => {
    const from = bounds[i - 1] ?? range.from
    const to = bounds[i] ?? range.to
    return {
      table: range.table,
      ...(from === undefined ? {} : { from }),
      ...(to === undefined ? {} : { to }),
      estimatedRows,
    }
  })
}

/** Pages to look at for each range wanted: rows of one page often lie together in key order. */
const pagesPerRange = 20

/** Into how many ranges a table is cut. */
export function rangesOf(rows: number, estimatedRows: number): number {
  return Math.max(1, Math.min(Math.round(estimatedRows / rows), 100_000))
}

/**
 * Bounds between about `ranges` ranges of a table, in order. A sample of pages decides, so a table of any size costs a few
 * thousand page reads; a small one is sorted whole. Run in the reader's transaction.
 */
export async function readBounds(
  client: pg.ClientBase,
  table: TableId,
  keyed: Keyed,
  ranges: number,
): Promise<readonly string[]> {
  const name = qualified(table)
  const size = await client.query<{ pages: number }>(
    `select (pg_relation_size(${literal(name)}::regclass) / current_setting('block_size')::int)::float8 as pages`,
  )
  const pages = size.rows[0]?.pages ?? 0
  const percent = pages === 0 ? 100 : (100 * pagesPerRange * ranges) / pages
  const sample = percent >= 50 ? '' : `tablesample system (${percent.toFixed(6)}) repeatable (1)`
  const places = placesOf(keyed)
  const bounds = await client.query<{ bound: string }>(
    `select json_build_array(${places.map((_, i) => `k${i}`).join(', ')})::text as bound
       from (select ${places.map(({ text }, i) => `${text} as k${i}`).join(', ')}, row_number() over (order by ${orderBy(places)}) - 1 as place, count(*) over () as total
               from only ${name} t ${sample}) s
      where place > 0 and place * ${ranges} / total <> (place - 1) * ${ranges} / total
      order by place`,
  )
  return bounds.rows.map((row) => row.bound)
}

/** Bounds between ranges of `rows` rows in a range whose key an index finds, in order. Reads the range's keys. */
export async function readSteps(
  client: pg.ClientBase,
  range: Range,
  keyed: Keyed,
  rows: number,
): Promise<readonly string[]> {
  const places = placesOf(keyed)
  const bounds = await client.query<{ bound: string }>(
    `select json_build_array(${places.map((_, i) => `k${i}`).join(', ')})::text as bound
       from (select ${places.map(({ text }, i) => `${text} as k${i}`).join(', ')}, row_number() over (order by ${orderBy(places)}) - 1 as place
               from only ${qualified(range.table)} t where ${rangeCondition(range, keyed)}) s
      where place > 0 and place % ${rows} = 0
      order by place`,
  )
  return bounds.rows.map((row) => row.bound)
}

function orderBy(places: readonly Place[]): string {
  return places.map(({ sql }) => sql).join(', ')
}

const hashBytes = 6
/** Bounds that cut a range of hashes, which are spread evenly, into `parts`. */
export function hashBounds(range: Range, parts: number): readonly string[] {
  const low = hashAt(range.from, 0n)
  const high = hashAt(range.to, 1n << BigInt(8 * hashBytes))
  const bounds = Array.from({ length: parts - 1 }, (_, i) => low + ((high - low) * BigInt(i + 1)) / BigInt(parts))
  return [...new Set(bounds)]
    .filter((at) => at > low)
    .map((at) => JSON.stringify([`\\x${at.toString(16).padStart(2 * hashBytes, '0')}`]))
}

function hashAt(bound: string | undefined, open: bigint): bigint {
  if (bound === undefined) return open
  const [hex = ''] = JSON.parse(bound) as readonly string[]
  return BigInt(`0x${hex.slice(2)}`)
}
