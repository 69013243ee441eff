import type pg from 'pg'
import { tableName, type ShapeEntry, type TableId, type TableSchema } from '../../src/model.ts'
import { selectCategories, selectObjects } from './check-queries.ts'
import { close, connect, type PostgresConfig } from './config.ts'
import { destroy } from './copy-out.ts'
import {
  selectColumnExtras,
  selectExtensions,
  selectSequences,
  selectTableExtras,
  selectUserTypes,
  type ColumnExtra,
} from './ddl-catalog.ts'
import { plainText } from './definition-text.ts'
import { mapError } from './errors.ts'
import { fits } from './fits.ts'
import { lookLimitMs, namingLockers } from './lockers.ts'
import { selectTypes } from './queries.ts'
import { readCatalog, readLeftOut, readPartitioned, type CatalogColumn, type CatalogTable } from './schema.ts'
import { constraintEntries, heir, indexEntries, triggerEntries, type Described } from './shape-constraints.ts'
import { selectCollationsUsed, selectExtensionVersions, selectNextValues, selectPartitions } from './shape-queries.ts'
import { typeEntry } from './shape-types.ts'
import { firstUserOid } from './types.ts'

/** What the tables with these names consist of at this end, on a connection of its own. Waits for whoever has locked one, for a while: SERVER_BUSY. */
export async function readShape(
  config: PostgresConfig,
  pipeline: string,
  tables: readonly TableSchema[],
  signal: AbortSignal,
): Promise<readonly ShapeEntry[]> {
  const client = await connect(config, { name: 'definitions', pipeline, lockTimeoutMs: lookLimitMs }, signal)
  const cut = (): void => destroy(client)
  signal.addEventListener('abort', cut, { once: true })
  try {
    return await namingLockers(client, async () => await shapeOf(client, tables))
  } catch (error) {
    signal.throwIfAborted()
    throw mapError(error)
  } finally {
    signal.removeEventListener('abort', cut)
    await close(client)
  }
}

async function shapeOf(client: pg.Client, asked: readonly TableSchema[]): Promise<readonly ShapeEntry[]> {
  await client.query('begin isolation level repeatable read read only')
  const names = new Set(asked.map(({ table }) => tableName(table)))
  const leaves = await readCatalog(client, (table) => names.has(tableName(table)))
  const tables = [...(await readPartitioned(client, leaves)), ...leaves]
  const oids = tables.map(({ oid }) => oid)
  const from: Described = { tables, byOid: new Map(tables.map((table) => [table.oid, table])), oids }
  const entries = [
    ...(await others(client, asked, leaves)),
    ...(await tableEntries(client, from)),
    ...(await columnEntries(client, from, asked)),
    ...(await constraintEntries(client, from)),
    ...(await indexEntries(client, from)),
    ...(await triggerEntries(client, from)),
    ...(await sequenceEntries(client, from)),
    ...(await typeEntries(client, from)),
  ]
  await client.query('commit')
  return entries
}

const kinds: Readonly<Record<string, string>> = {
  v: 'a view',
  m: 'a materialized view',
  f: 'a foreign table',
  p: 'a partitioned table',
  S: 'a sequence',
  c: 'a type',
}

/** What has a table's name, and is none that rows could be followed in. */
async function others(
  client: pg.Client,
  asked: readonly TableSchema[],
  leaves: readonly CatalogTable[],
): Promise<readonly ShapeEntry[]> {
  const found = new Set(leaves.map(({ table }) => tableName(table)))
  const rest = asked.map(({ table }) => table).filter((table) => !found.has(tableName(table)))
  if (rest.length === 0) return []
  const wanted = new Set(rest.map(tableName))
  const left = await readLeftOut(client, (table) => wanted.has(tableName(table)))
  const reasons = new Map(left.map(({ table, reason }) => [tableName(table), reason]))
  return (await selectObjects(client, rest)).flatMap((object): ShapeEntry[] => {
    if (object.oid === null) return []
    const text = reasons.get(tableName(object)) ?? kinds[object.kind ?? ''] ?? 'something else'
    return [{ kind: 'table', table: tableName(object), name: '', text, parts: { kind: text } }]
  })
}

async function tableEntries(client: pg.Client, { tables, oids, byOid }: Described): Promise<readonly ShapeEntry[]> {
  const extras = new Map((await selectTableExtras(client, oids)).map((row) => [row.oid, row]))
  const found = tables.map((table): ShapeEntry => {
    const { partitionKey, options } = extras.get(table.oid) ?? {}
    const text = table.kind === 'p' ? 'a partitioned table' : 'a table'
    const security = table.rls.enabled ? (table.rls.forced ? 'forced' : 'on') : ''
    const parts = {
      kind: text,
      'partition key': plainText(partitionKey ?? ''),
      'row security': security,
      options: (options ?? []).toSorted().join(', '),
    }
    return { kind: 'table', table: tableName(table.table), name: '', text, parts }
  })
  const known = new Set(tables.map(({ table }) => tableName(table)))
  const partitions = (await selectPartitions(client, oids)).flatMap((row): ShapeEntry[] => {
    const parent = byOid.get(row.parent)
    if (parent === undefined) return []
    const foreign: Record<string, string> = known.has(tableName(row)) ? {} : { foreign: 'yes' }
    const text = `of ${tableName(parent.table)} ${row.bound}`.trim()
    const name = tableName(parent.table)
    return [{ kind: 'parent', table: tableName(row), name, text, parts: { bound: plainText(row.bound), ...foreign } }]
  })
  const children = tables.flatMap((table) =>
    table.parents
      .filter((parent) => !known.has(tableName(parent)))
      .map((parent): ShapeEntry => {
        const name = tableName(parent)
        return { kind: 'parent', table: tableName(table.table), name, text: `of ${name}`, parts: { foreign: 'yes' } }
      }),
  )
  return [...found, ...partitions, ...children]
}

async function columnEntries(
  client: pg.Client,
  { tables, oids }: Described,
  asked: readonly TableSchema[],
): Promise<readonly ShapeEntry[]> {
  const extras = new Map((await selectColumnExtras(client, oids)).map((row) => [`${row.table} ${row.attnum}`, row]))
  const wanted = new Map(asked.map((schema) => [tableName(schema.table), schema]))
  for (const { table, ancestors } of tables) {
    const leaf = wanted.get(tableName(table))
    for (const name of leaf === undefined ? [] : ancestors.map(tableName)) if (leaf) wanted.set(name, leaf)
  }
  const sent = (table: TableId, column: string): string | undefined =>
    wanted.get(tableName(table))?.columns.find(({ name }) => name === column)?.type
  const categories = await selectCategories(client, [
    ...new Set([
      ...asked.flatMap(({ columns }) => columns.map(({ type }) => type)),
      ...tables.flatMap(({ columns }) => columns.map(({ type }) => type)),
    ]),
  ])
  return tables.flatMap((table) =>
    table.columns.map((column): ShapeEntry => {
      const type = sent(table.table, column.name)
      const takes = type === undefined ? '' : fits(type, column.type, categories)
      return columnEntry(table, column, extras.get(`${table.oid} ${column.attnum}`), takes)
    }),
  )
}

function columnEntry(
  table: CatalogTable,
  column: CatalogColumn,
  extra: ColumnExtra | undefined,
  takes: string,
): ShapeEntry {
  const expression = column.default ?? ''
  const generated = column.generated === false ? '' : plainText(expression)
  const given = column.generated === false ? expression : ''
  // From version 17 on a partition has its parent's identity, before it had none.
  const identity = column.identity === false || table.isPartition ? '' : column.identity
  const nullable = column.notNull ? (extra?.unproved ? 'not in new rows' : 'no') : 'yes'
  const parts = {
    type: column.type,
    takes,
    nullable,
    default: plainText(given),
    identity,
    generated,
    stored: column.generated === false ? '' : column.generated,
    collation: extra?.collation ?? '',
    equality: column.collation?.deterministic === false ? 'by collation' : '',
  }
  const text = [
    column.type,
    ...(extra?.collation ? [`collate ${extra.collation}`] : []),
    ...(column.generated === false ? [] : [`generated always as (${expression}) ${column.generated}`]),
    ...(identity === '' ? [] : [`generated ${identity === 'always' ? 'always' : 'by default'} as identity`]),
    ...(given === '' ? [] : [`default ${given}`]),
    ...(column.notNull ? ['not null'] : []),
  ].join(' ')
  const inherits = table.isPartition || table.parents.length > 0
  const shown = { default: given, generated: column.generated === false ? '' : expression }
  return {
    kind: 'column',
    table: tableName(table.table),
    name: column.name,
    text,
    parts,
    shown,
    ...heir(table, inherits),
  }
}

async function sequenceEntries(client: pg.Client, { oids, byOid }: Described): Promise<readonly ShapeEntry[]> {
  const sequences = await selectSequences(client, oids)
  const values = await selectNextValues(client, sequences)
  return sequences.map((row, i): ShapeEntry => {
    const table = row.table === null ? undefined : byOid.get(row.table)
    const column = table?.columns.find(({ attnum }) => attnum === row.column)?.name
    const name = tableName(row)
    const owner = table === undefined ? '' : `${tableName(table.table)}.${column ?? ''}`
    const { type, increment, min, max, start, cache, cycle } = row
    return {
      kind: 'sequence',
      table: table === undefined ? '' : tableName(table.table),
      name,
      means: owner === '' ? name : owner,
      text: `${type} by ${increment} from ${min} to ${max}${cycle ? ' cycle' : ''}, next ${values[i] ?? ''}`,
      parts: {
        next: String(values[i] ?? ''),
        type,
        increment,
        min,
        max,
        start,
        cache,
        cycle: cycle ? 'yes' : '',
      },
    }
  })
}

async function typeEntries(client: pg.Client, { oids }: Described): Promise<readonly ShapeEntry[]> {
  const typeOids = (await selectTypes(client, oids)).map(({ oid }) => oid).filter((oid) => oid >= firstUserOid)
  const types = (await selectUserTypes(client, typeOids)).flatMap((row) => typeEntry(row))
  const extensions = await selectExtensionVersions(client, await selectExtensions(client, oids, typeOids))
  const collations = await selectCollationsUsed(client, oids)
  return [
    ...types,
    ...extensions.map(({ name, version }): ShapeEntry => ({
      kind: 'extension',
      table: '',
      name,
      text: version,
      parts: { version },
    })),
    ...collations.map(({ name, locale, deterministic, version, encoding }): ShapeEntry => ({
      kind: 'collation',
      table: '',
      name,
      text: locale,
      parts: {
        locale: plainLocale(locale),
        deterministic: deterministic ? 'yes' : 'no',
        version: version ?? '',
        encoding: encoding ?? '',
      },
      shown: { locale },
    })),
  ]
}

/** By bytes is by bytes, whoever does it; and the library reads the names of encodings without regard to how they are written. */
function plainLocale(locale: string): string {
  if (/^(?:libc|builtin) (?:C|POSIX)$/.test(locale)) return 'C'
  return locale.replaceAll(/\.([\w-]+)/g, (_, encoding: string) => `.${encoding.replaceAll('-', '').toLowerCase()}`)
}
