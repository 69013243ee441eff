import { serverVersion } from '../../connectors/postgres/queries.ts'
import { connected } from './shop.ts'
import {
  declared,
  extensionValues,
  hostileCasts,
  objects,
  unwritable,
  userTypes,
  userValues,
  valuesOf,
  valuesSince,
} from './type-values.ts'

/** One column: its name, its type as declared, and values as its input function reads them. */
export type TypeColumn = {
  readonly name: string
  readonly type: string
  readonly values: readonly string[]
  /** What stands between elements of its array type; none: it has no array type. */
  readonly delimiter: string | undefined
  /** Function that prints the value's bytes, where they mean the same at every server. */
  readonly send: string | undefined
}

/** Everything the values name, at either end. */
export async function createTypes(url: string): Promise<void> {
  await using client = await connected(url)
  await client.query(objects)
  await client.query(userTypes)
  const { rows } = await client.query<{ name: string }>(
    'select name from pg_available_extensions where name = any($1)',
    [Object.keys(extensionValues)],
  )
  for (const { name } of rows) await client.query(`create extension "${name}" schema public`)
  await client.query(hostileCasts)
}

/** A column for each type of the database that can be a column's. Rejects with the names of those for which there is no value. */
export async function typeColumns(url: string): Promise<readonly TypeColumn[]> {
  await using client = await connected(url)
  const { rows } = await client.query<{ name: string; type: string; delimiter: string | null; send: string | null }>(
    `select t.typname as name, format_type(t.oid, -1) as type, case when t.typarray <> 0 then t.typdelim::text end as delimiter,
            case when t.oid < 16384 and t.typname !~ '^reg' then (select p.proname from pg_proc p where p.oid = t.typsend and p.proargtypes[0] = t.oid) end as send
       from pg_type t join pg_namespace n on n.oid = t.typnamespace left join pg_class c on c.oid = t.typrelid
      where t.typtype in ('b', 'c', 'd', 'e', 'm', 'r') and t.typisdefined and n.nspname !~ '^pg_(toast|temp)'
        and not exists (select from pg_type e where e.typarray = t.oid) and (c.oid is null or c.oid >= 16384)
      order by t.oid`,
  )
  const version = await serverVersion(client)
  const newer = Object.entries(valuesSince).flatMap(([since, some]) => (Number(since) <= version ? [some] : []))
  const known = new Map(
    [valuesOf, userValues, informationSchema, ...Object.values(extensionValues)].flatMap((some) =>
      Object.entries(some),
    ),
  )
  const wanted = rows.filter(({ name }) => !unwritable.includes(name))
  const forgotten = wanted.filter(({ name }) => !known.has(name)).map(({ type }) => type)
  if (forgotten.length > 0) throw new Error(`no value of ${forgotten.join(', ')}`)
  return [
    ...wanted.flatMap(({ name, type, delimiter, send }): TypeColumn[] => {
      const values = [...(known.get(name) ?? []), ...newer.flatMap((some) => some[name] ?? [])]
      return values.length === 0
        ? []
        : [{ name, type, values, delimiter: delimiter ?? undefined, send: send ?? undefined }]
    }),
    ...Object.entries(declared).map(([type, values]) => ({
      name: type,
      type,
      values,
      delimiter: ',',
      send: undefined,
    })),
  ]
}

const informationSchema: Readonly<Record<string, readonly string[]>> = {
  cardinal_number: ['0', '2147483647'],
  character_data: ['', 'täxt'],
  sql_identifier: ['', 'x'.repeat(63)],
  time_stamp: ['2024-02-29 12:00:00.12+00', '-infinity'],
  yes_or_no: ['YES', 'NO'],
}
export const quoted = (name: string): string => `"${name.replaceAll('"', '""')}"`

/** Creates a table with an `id` and, for each of these, a column and one of its arrays. */
export async function createTypeTable(
  url: string,
  table: string,
  columns: readonly TypeColumn[],
  key = true,
): Promise<void> {
  const parts = columns.flatMap(({ name, type, delimiter }) => [
    `${quoted(name)} ${type}`,
    ...(delimiter === undefined ? [] : [`${quoted(`${name}[]`)} ${type}[]`]),
  ])
  await using client = await connected(url)
  await client.query(`create table ${table} (id int${key ? ' primary key' : ''}, ${parts.join(', ')})`)
  if (!key) await client.query(`alter table ${table} replica identity full`)
}

/** Rows from `first` on: row i holds the i-th value of each type, those behind them arrays: of all, of none, of two dimensions, with lower bounds. */
export async function fillTypeTable(
  url: string,
  table: string,
  columns: readonly TypeColumn[],
  first = 0,
): Promise<void> {
  await using client = await connected(url)
  const rows = Math.max(...columns.map(({ values }) => values.length)) + 1
  for (let i = 0; i < rows; i++) {
    const given = columns.filter(({ values }) => values[i] !== undefined)
    const names = given.map(({ name }) => `, ${quoted(name)}`).join('')
    await client.query(
      `insert into ${table} (id${names}) values (${first + i}${given.map((_, p) => `, $${p + 1}`).join('')})`,
      given.map(({ values }) => values[i] ?? ''),
    )
  }
  const arrays = columns.filter(({ delimiter }) => delimiter !== undefined)
  const names = arrays.map(({ name }) => `, ${quoted(`${name}[]`)}`).join('')
  for (let form = 0; form < 4; form++)
    await client.query(
      `insert into ${table} (id${names}) values (${first + rows + form}${arrays.map((_, p) => `, $${p + 1}`).join('')})`,
      arrays.map(({ values, delimiter = ',' }) => arrayText(values, delimiter, form)),
    )
}

/** In arrays: what is longer is heavy, and nothing new. */
const longest = 20_000

/** An array of these values as its input function reads it: form 0 of all and a null, 1 empty, 2 of two dimensions, 3 with bounds below zero. */
export function arrayText(values: readonly string[], delimiter: string, form: number): string {
  const elements = values
    .filter(({ length }) => length < longest)
    .map((value) => `"${value.replaceAll(/["\\]/g, '\\$&')}"`)
  const [one = 'NULL', two = 'NULL'] = elements
  const list = (...some: readonly string[]): string => `{${some.join(delimiter)}}`
  if (form === 0) return list(...elements, 'NULL')
  if (form === 1) return '{}'
  return form === 2 ? list(list(one, 'NULL'), list('NULL', two)) : `[-2:-1]=${list(one, 'NULL')}`
}

/** What differs between two ends in a table of `createTypeTable`, by column: text, bytes where they are comparable, bounds, type. */
export async function compareTypeTable(
  source: string,
  target: string,
  table: string,
  columns: readonly TypeColumn[],
): Promise<readonly string[]> {
  const asked = columns.flatMap(({ name, delimiter, send }) => {
    const bytes = send === undefined ? [] : [`${send}(${quoted(name)})::text`]
    const value = digest([
      `format('%s', ${quoted(name)})`,
      `(${quoted(name)} is null)::text`,
      ...bytes,
      `pg_typeof(${quoted(name)})::text`,
    ])
    const list = quoted(`${name}[]`)
    return [
      { what: name, sql: value },
      ...(delimiter === undefined
        ? []
        : [
            {
              what: `${name}[]`,
              sql: digest([`format('%s', ${list})`, `array_dims(${list})`, `pg_typeof(${list})::text`]),
            },
          ]),
    ]
  })
  const read = async (url: string): Promise<readonly string[]> => {
    await using client = await connected(url)
    await client.query(`set timezone = 'UTC'; set extra_float_digits = 3`)
    const { rows } = await client.query<{ d: readonly string[] }>(
      `select array[count(*)::text, ${asked.map(({ sql }) => sql).join(', ')}] as d from ${table}`,
    )
    return rows[0]?.d ?? []
  }
  const [a, b] = await Promise.all([read(source), read(target)])
  if (a[0] !== b[0]) return [`${table}: ${a[0]} rows at the source, ${b[0]} at the target`]
  return asked.filter((_, i) => a[i + 1] !== b[i + 1]).map(({ what }) => `${table}.${what} differs`)
}

function digest(parts: readonly string[]): string {
  return `md5(string_agg(id || ':' || ${parts.map((part) => `coalesce(${part}, 'none')`).join(` || ' ' || `)}, ',' order by id))`
}

/** Inserts, updates of all columns and of one, and deletes, so that each value goes each way once. */
export async function changeTypeTable(url: string, table: string, columns: readonly TypeColumn[]): Promise<void> {
  await using client = await connected(url)
  const names = columns.flatMap(({ name, delimiter }) => [
    quoted(name),
    ...(delimiter === undefined ? [] : [quoted(`${name}[]`)]),
  ])
  const all = names.join(', ')
  const { rows } = await client.query<{ count: number }>(`select count(*)::int as count from ${table}`)
  const count = rows[0]?.count ?? 0
  await client.query(`insert into ${table} (id, ${all}) select id + 1000, ${all} from ${table}`)
  await client.query(
    `update ${table} t set (${all}) = (select ${names.map((name) => `s.${name}`).join(', ')} from ${table} s where s.id = (t.id + 1) % ${count}) where id < 1000`,
  )
  await client.query(`delete from ${table} where id >= 1000 and id % 3 = 0`)
  await client.query(`update ${table} set id = id + 10000 where id >= 1000 and id % 3 = 1`)
  await client.query(`update ${table} set bool = not coalesce(bool, false)`)
}
