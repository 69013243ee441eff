import { parse } from '../../connectors/postgres/config.ts'
import { copyIn } from '../../connectors/postgres/frontend.ts'
import { openReader } from '../../connectors/postgres/reader.ts'
import { readCatalog, tableSchema } from '../../connectors/postgres/schema.ts'
import { textToNative } from '../../src/avro/native.ts'
import type { Digest, TableReader } from '../../src/connector.ts'
import type { TableSchema } from '../../src/model.ts'
import { readImage, rowsOf, Tag, type Rows } from '../../src/rows.ts'
import { openDigester, readDigest } from '../../src/verify/digest.ts'
import type { PostgresVersion } from './postgres.ts'
import { randomArray, randomFrom, randomValue } from './random-values.ts'
import { postgres } from './servers.ts'
import { connected } from './shop.ts'
import { createTypes, typeColumns, type TypeColumn } from './type-tables.ts'
import { valuesSince } from './type-values.ts'

/** What one type's table digests to: computed by the server, from its rows, and from its rows in their native form where there is one. */
export type TypeDigests = {
  readonly server: Digest
  readonly worker: Digest
  readonly native: Digest | undefined
}
const never = new AbortController().signal
const frameLength = 1 << 16

/** A table for each type a column may have, with `rows` random values and arrays of it, and what it digests to, by the type's name. */
export async function digestsOfTypes(
  version: PostgresVersion,
  rows: number,
  seed: number,
): Promise<ReadonlyMap<string, TypeDigests>> {
  const url = await (await postgres(version)).database('digest_types')
  await createTypes(url)
  const columns = (await typeColumns(url)).flatMap(withoutNewer)
  await using client = await connected(url)
  const tables = columns.map((column, i) => ({ column, table: `t${i}` }))
  await client.query(
    tables
      .map(({ column, table }) => {
        const array = column.delimiter === undefined ? '' : `, a ${column.type}[]`
        return `create table public.${table} (id int primary key, v ${column.type}${array})`
      })
      .join(';'),
  )
  for (const { column, table } of tables) {
    const random = randomFrom(seed)
    await copyIn(client, `copy public.${table} from stdin`, lines(column, rows, random)).catch((error: unknown) => {
      throw new Error(`values of ${column.type}`, { cause: error })
    })
  }
  const schemas = new Map(
    (await readCatalog(client, ({ schema }) => schema === 'public')).map((table) => [
      table.table.name,
      tableSchema(table, 1),
    ]),
  )
  const digests = new Map<string, TypeDigests>()
  await using reader = await openReader(parse({ url }), 'now', 'p', never)
  for (const { column, table } of tables) {
    const schema = schemas.get(table)
    if (!schema) throw new Error(`no table ${table}`)
    digests.set(column.name, await bothWays(reader, schema))
  }
  return digests
}

/** Of a whole table: by the reader's own digest, and by the worker's over its rows. */
export async function bothWays(reader: TableReader, schema: TableSchema): Promise<TypeDigests> {
  const range = { table: schema.table, estimatedRows: 0 }
  const server = await readDigest(reader, schema, range, never)
  const [worker, native] = [openDigester(schema), openDigester(schema)]
  const someNative = schema.columns.slice(1).some(({ form }) => form !== 'text')
  for await (const rows of reader.rows(schema, range, never)) {
    worker.add(rows)
    if (someNative) native.add(nativeRows(schema, rows))
  }
  return { server, worker: worker.digest(), native: someNative ? native.digest() : undefined }
}

/** Values that only newer servers read are a type of their own: the rest has to digest to the same at each. */
function withoutNewer(column: TypeColumn): readonly TypeColumn[] {
  // A named zone is read by the list of zones that each server has.
  const known = column.values.filter((value) => !/ [A-Z]\w+\/[A-Z]/.test(value))
  const newer = new Set(Object.values(valuesSince).flatMap((some) => some[column.name] ?? []))
  const [values, others] = [known.filter((v) => !newer.has(v)), known.filter((v) => newer.has(v))]
  const rest = { ...column, name: `${column.name}, newer`, values: others }
  return others.length === 0 ? [{ ...column, values }] : [{ ...column, values }, rest]
}

/** Frames of a COPY in text, as its input functions read it. */
async function* lines(column: TypeColumn, rows: number, random: () => number): AsyncGenerator<Buffer> {
  let text = ''
  for (let i = 0; i < rows; i++) {
    const chance = random()
    // Each of those written by hand once.
    const value = column.values[i] ?? (chance < 0.02 ? null : randomValue(column, random))
    text += `${i}\t${escaped(value)}`
    if (column.delimiter !== undefined) text += `\t${escaped(chance > 0.3 ? null : randomArray(column, random))}`
    text += '\n'
    if (text.length > frameLength || i === rows - 1) {
      const frame = Buffer.from(`dxxxx${text}`)
      frame.writeInt32BE(frame.length - 1, 1)
      yield frame
      text = ''
    }
  }
}

function escaped(value: string | null): string {
  return value === null ? '\\N' : value.replaceAll(/[\\\t\n\r]/g, (found) => escapes[found] ?? found)
}
const escapes: Readonly<Record<string, string>> = { '\\': '\\\\', '\t': '\\t', '\n': '\\n', '\r': '\\r' }

function nativeRows(schema: TableSchema, rows: Rows): Rows {
  return rowsOf(
    Array.from({ length: rows.count }, (_, i) =>
      readImage(rows.bytes, rows.starts[i] ?? 0, rows.starts[i + 1] ?? 0).map((cell, c) => {
        const form = schema.columns[c]?.form ?? 'text'
        if (!cell || form === 'text') return cell
        const bytes = textToNative(form, Buffer.from(cell.bytes).toString())
        return bytes ? { tag: Tag.native, bytes } : cell
      }),
    ),
  )
}

/** What is not as it has to be: between server and worker, and, where both versions read the same values, between them. */
export function differingTypes(
  older: ReadonlyMap<string, TypeDigests>,
  newer: ReadonlyMap<string, TypeDigests>,
): readonly string[] {
  const same = (a: Digest, b: Digest): boolean =>
    a.rows === b.rows && a.sums[0] === b.sums[0] && a.sums[1] === b.sums[1]
  const wrong: string[] = []
  for (const digests of [older, newer])
    for (const [name, { server, worker, native }] of digests) {
      if (!same(server, worker)) wrong.push(`${name}: the worker's`)
      if (native && !same(server, native)) wrong.push(`${name}: the worker's of native cells`)
    }
  for (const [name, { server }] of older) {
    const other = newer.get(name)
    if (!other || !same(server, other.server)) wrong.push(`${name}: the versions'`)
  }
  return wrong
}
