import type pg from 'pg'
import type { Finding } from '../../src/connector.ts'
import { tableName, type AboutSource, type TableSchema, type TypeParts } from '../../src/model.ts'
import { checkParts } from './check-parts.ts'
import {
  maySetReplicaRole,
  selectCategories,
  selectEnforcers,
  selectObjects,
  selectOccupied,
  selectRights,
  selectServer,
  selectTypeParts,
  selectWriter,
  type ServerRow,
} from './check-queries.ts'
import { checkVersion, finding } from './check.ts'
import { fits } from './fits.ts'
import { namingLockers } from './lockers.ts'
import { ident, literal, qualified, selectUniqueIndexes, type IndexRow } from './queries.ts'
import { isImplied, readCatalog, type CatalogTable } from './schema.ts'

/** The preflight of a target for these tables, under a lock_timeout. Changes nothing. Tables that are missing are no blocker: they may be made. */
export async function checkTarget(
  client: pg.Client,
  tables: readonly TableSchema[],
  { changing = new Set(), types = [] }: AboutSource = {},
  pipeline = '',
): Promise<readonly Finding[]> {
  return await namingLockers(client, async () => {
    const server = await selectServer(client)
    const writer = await selectWriter(client)
    if (!server || !writer)
      return [finding('target.role', 'unknown', 'the role is not in pg_roles', 'a role of the server')]
    const found = [...checkVersion('target', server)]
    if (server.read_only && !server.recovery)
      found.push(
        finding(
          'target.writable',
          'blocker',
          'the database is read-only',
          'a database that can be written to',
          `ALTER DATABASE ${ident(server.database)} SET default_transaction_read_only = off;`,
        ),
      )
    if (!(writer.own_schema ?? server.create_in_database))
      found.push(
        finding(
          'target.own_schema',
          'blocker',
          `${server.user} may not create the schema crossfade`,
          'CREATE',
          writer.own_schema === null
            ? `GRANT CREATE ON DATABASE ${ident(server.database)} TO ${ident(server.user)};`
            : `GRANT ALL ON SCHEMA crossfade TO ${ident(server.user)};`,
        ),
      )
    found.push(
      writer.origins
        ? finding(
            'target.origins',
            'ok',
            `${server.user} may mark its own writes`,
            'EXECUTE on the functions of replication origins',
          )
        : finding(
            'target.origins',
            'warning',
            `${server.user} may not mark its own writes: a way back cannot tell them from others`,
            'EXECUTE on the functions of replication origins',
            ['create(text)', 'drop(text)', 'oid(text)', 'session_setup(text)', 'session_reset()', 'session_is_setup()']
              .map((name) => `GRANT EXECUTE ON FUNCTION pg_replication_origin_${name} TO ${ident(server.user)};`)
              .join('\n'),
          ),
    )
    if (writer.origins) found.push(...checkOrigins(server, writer.origin_names, writer.origin_limit, pipeline))
    found.push(...(await checkPresent(client, server, tables, changing, types)))
    return found
  })
}

/** Sessions that stream at once, each under a name of its own: as many as a pipeline has lanes, unless told otherwise. */
const lanes = 4

/** Names stay with a server for good, also those of pipelines that are no more; whose writes a slot may still have to tell apart, only people know. */
function checkOrigins(
  server: ServerRow,
  names: readonly string[],
  limit: number,
  pipeline: string,
): readonly Finding[] {
  const own = names.filter((name) => name.startsWith(`crossfade:${pipeline}:`)).length
  const free = limit - names.length
  const wanted = Math.max(0, lanes - own)
  if (free >= wanted) return []
  const others = names.filter((name) => name.startsWith('crossfade:') && !name.startsWith(`crossfade:${pipeline}:`))
  const setting = server.version >= 180_000 ? 'max_active_replication_origins' : 'max_replication_slots'
  return [
    finding(
      'target.origins',
      'warning',
      `${Math.max(0, free)} of ${limit} replication origins free${others.length > 0 ? `, and ${others.join(', ')} are of other pipelines` : ''}`,
      `${wanted} more, one a lane: writes without one cannot be told from others by a way back`,
      [
        ...others.map((name) => `SELECT pg_replication_origin_drop(${literal(name)}); -- if its pipeline is no more`),
        `ALTER SYSTEM SET ${setting} = ${limit + wanted - Math.min(0, free)}; -- then restart the server`,
      ].join('\n'),
    ),
  ]
}

/** A blocker for each of the tables that is there and holds rows. */
export async function checkOccupied(client: pg.Client, tables: readonly TableSchema[]): Promise<readonly Finding[]> {
  return await namingLockers(client, async () => {
    const objects = await selectObjects(
      client,
      tables.map((schema) => schema.table),
    )
    const present = objects.filter((object) => object.oid !== null && object.kind === 'r')
    return (await selectOccupied(client, present)).flatMap((index) => {
      const table = present[index]
      if (!table) return []
      return finding(
        'target.empty',
        'blocker',
        `${tableName(table)} holds rows already: the copy would collide or mix with them`,
        'an empty table, or mode: incremental where the rows are the source’s own',
        `TRUNCATE ${qualified(table)}; -- at the target, if nobody needs its rows`,
      )
    })
  })
}

async function checkPresent(
  client: pg.Client,
  server: ServerRow,
  tables: readonly TableSchema[],
  changing: ReadonlySet<string>,
  types: readonly TypeParts[],
): Promise<readonly Finding[]> {
  const found: Finding[] = []
  const objects = new Map(
    (
      await selectObjects(
        client,
        tables.map((schema) => schema.table),
      )
    ).map((row) => [tableName(row), row]),
  )
  const catalog = new Map(
    (await readCatalog(client, (table) => objects.has(tableName(table)))).map((table) => [
      tableName(table.table),
      table,
    ]),
  )
  const present = [...catalog.values()].filter((table) => objects.has(tableName(table.table)))
  const oids = present.map((table) => table.oid)
  const rights = new Map((await selectRights(client, oids)).map((row) => [row.oid, row]))
  const unique = Map.groupBy(await selectUniqueIndexes(client, oids), (row) => row.indrelid)
  const parts = types.length === 0 ? [] : await selectTypeParts(client, oids)
  const categories = await selectCategories(client, [
    ...new Set([
      ...[...types, ...parts].flatMap((type) => type.parts.flatMap((part) => part.type ?? [])),
      ...tables.flatMap((schema) => schema.columns.map((column) => column.type)),
      ...present.flatMap((table) => table.columns.map((column) => column.type)),
    ]),
  ])
  let missing = 0
  for (const schema of tables) {
    const name = tableName(schema.table)
    const object = objects.get(name)
    const table = catalog.get(name)
    if (object?.oid === null || object === undefined) {
      missing++
      if (object?.schema_create === false)
        found.push(
          finding(
            'target.create',
            'blocker',
            `${server.user} may not create tables in schema ${schema.table.schema}`,
            'CREATE',
            `GRANT CREATE ON SCHEMA ${ident(schema.table.schema)} TO ${ident(server.user)};`,
          ),
        )
      continue
    }
    if (!table) {
      found.push(
        finding('target.shape', 'blocker', `${name} is not an ordinary, logged table`, 'a table as at the source'),
      )
      continue
    }
    const right = rights.get(table.oid)
    if (right && (!right.write || !right.usage))
      found.push(
        finding(
          'target.write',
          'blocker',
          `${server.user} may not write to ${name}`,
          'SELECT, INSERT, UPDATE, DELETE, TRUNCATE',
          `GRANT USAGE ON SCHEMA ${ident(schema.table.schema)} TO ${ident(server.user)};\nGRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ${qualified(schema.table)} TO ${ident(server.user)};`,
        ),
      )
    if (right?.hidden)
      found.push(
        finding(
          'target.row_security',
          'blocker',
          `row security of ${name} applies to ${server.user}`,
          'a role that sees every row',
          `ALTER ROLE ${ident(server.user)} BYPASSRLS;`,
        ),
      )
    const lacks = schema.columns.some(({ name }) => table.columns.every((column) => column.name !== name))
    const holdsRows = lacks && right?.write === true && (await selectOccupied(client, [schema.table])).length > 0
    const differences = compare(schema, table, unique.get(table.oid) ?? [], categories, holdsRows)
    found.push(...(changing.has(name) ? differences.map(onTheWay) : differences))
  }
  found.push(
    finding(
      'target.tables',
      'ok',
      `${tables.length - missing} of ${tables.length} tables are there`,
      'all, or none, to be made',
    ),
    ...checkParts(types, parts, categories),
    ...(await checkEnforcers(client, server, oids)),
  )
  return found
}

/** Only whoever has applied all that came before knows what is to be done: a column that is added too early or too late holds other values. */
function onTheWay({ observed, needed }: Finding): Finding {
  return finding(
    'target.shape',
    'warning',
    `${observed}, and the table was changed at the source since it was recorded`,
    `${needed}, from its place among the rows on`,
    'Run the pipeline: it applies what came before, and then makes the change itself (ddl: apply) or ends with the statements for the target (ddl: stop)',
  )
}

/** Each difference of shape in which rows of the source may not fit. */
function compare(
  schema: TableSchema,
  table: CatalogTable,
  unique: readonly IndexRow[],
  categories: ReadonlyMap<string, string | null>,
  holdsRows: boolean,
): readonly Finding[] {
  const found: Finding[] = []
  const name = tableName(table.table)
  const alter = `ALTER TABLE ${qualified(table.table)}`
  const differs = (level: Finding['level'], observed: string, needed: string, remedy?: string): void =>
    void found.push(finding('target.shape', level, observed, needed, remedy))
  const columns = new Map(table.columns.map((column) => [column.name, column]))
  const keys = new Set(schema.key.map((index) => schema.columns[index]?.name ?? ''))
  for (const column of schema.columns) {
    const at = columns.get(column.name)
    const where = `${name}.${column.name}`
    if (!at)
      differs(
        'blocker',
        `${where} is missing`,
        column.type,
        holdsRows
          ? `-- ${where}: the rows that are there need the source’s values in it. Copy the table anew, or add the column and fill it from the source`
          : `${alter} ADD COLUMN ${ident(column.name)} ${column.type};`,
      )
    else {
      if (at.generated)
        differs(
          'blocker',
          `${where} is generated`,
          'a column that takes values',
          `${alter} ALTER COLUMN ${ident(column.name)} DROP EXPRESSION;`,
        )
      const fit = fits(column.type, at.type, categories)
      const merges =
        keys.has(column.name) && (fit !== 'ok' || (!schema.pinned && at.collation?.deterministic === false))
      if (merges)
        differs(
          'blocker',
          `${where} is ${at.type}${fit === 'ok' ? ` with collation ${at.collation?.name}` : ''}: keys that differ at the source may be one there`,
          `${column.type}, as at the source`,
          `${alter} ALTER COLUMN ${ident(column.name)} TYPE ${column.type}${fit === 'ok' ? ' COLLATE "C"' : ''} USING ${ident(column.name)}::text::${column.type};`,
        )
      else if (fit !== 'ok')
        differs(
          fit,
          `${where} is ${at.type}`,
          column.type,
          `${alter} ALTER COLUMN ${ident(column.name)} TYPE ${column.type} USING ${ident(column.name)}::text::${column.type};`,
        )
      if (column.nullable && at.notNull)
        differs(
          'blocker',
          `${where} takes no NULL`,
          'NULL, as at the source',
          `${alter} ALTER COLUMN ${ident(column.name)} DROP NOT NULL;`,
        )
    }
  }
  const names = new Set(schema.columns.map((column) => column.name))
  for (const column of table.columns) {
    if (names.has(column.name) || column.generated) continue
    if (column.notNull && column.default === undefined && !column.identity)
      differs(
        'blocker',
        `${name}.${column.name} needs a value, and the source has no such column`,
        'NULL or a default',
        `${alter} ALTER COLUMN ${ident(column.name)} DROP NOT NULL;`,
      )
    else differs('warning', `${name}.${column.name} is not at the source: it keeps its default`, 'the same columns')
  }
  const key = [...keys]
  const keyOids = new Set(key.map((column) => columns.get(column)?.attnum ?? 0))
  if (key.length > 0) {
    const carries = unique.some(
      (index) =>
        index.plain &&
        index.indimmediate &&
        index.columns.length === keyOids.size &&
        index.columns.every((attnum) => keyOids.has(attnum)),
    )
    if (!carries)
      differs(
        'blocker',
        `${name} has no unique index over (${key.join(', ')})`,
        'the key of the source',
        `${alter} ADD PRIMARY KEY (${key.map(ident).join(', ')});`,
      )
    // A row whose key is NULL has no key: nobody would find it.
    for (const column of key)
      if (carries && columns.get(column)?.notNull === false)
        differs(
          'blocker',
          `${name}.${column} is part of the key and takes NULL`,
          'NOT NULL, as at the source',
          `${alter} ALTER COLUMN ${ident(column)} SET NOT NULL;`,
        )
    // The source has none, so its changes come by several ways, each in an order of its own.
    const others = schema.pinned ? [] : unique.filter((index) => !isImplied(index, [...keyOids]))
    for (const index of others)
      differs(
        'warning',
        `${name} has unique index ${index.name}, and the source has none beside the key: values that move between rows may be refused`,
        'the indexes of the source until cutover',
        `DROP INDEX ${qualified(index)}; -- or the constraint it belongs to`,
      )
  }
  return found
}

/** Changes arrive per table and partition: what checks rows against other tables, or writes by itself, must not act on them. */
async function checkEnforcers(
  client: pg.Client,
  server: ServerRow,
  oids: readonly number[],
): Promise<readonly Finding[]> {
  const enforcers = await selectEnforcers(client, oids)
  const id = 'target.replica_role'
  const needed = 'session_replication_role = replica for the connections of the pipeline'
  const always = enforcers.flatMap(({ kind, what, off }) => {
    if (kind === 'always trigger')
      return finding(
        'target.trigger',
        'blocker',
        `trigger ${what} is enabled for replicated rows too: it would act twice`,
        'none until cutover',
        `${off};`,
      )
    if (kind === 'always rule')
      return finding(
        'target.rule',
        'blocker',
        `rule ${what} acts on the statements that apply changes, or forbids them`,
        'none until cutover',
        `${off};`,
      )
    if (kind === 'outer key')
      return finding(
        'target.truncate',
        'warning',
        `foreign key ${what} is of a table that is not in this pipeline: a TRUNCATE of the table it refers to will be refused`,
        'none until cutover, if the source ever truncates',
        `${off};`,
      )
    return []
  })
  if (await maySetReplicaRole(client)) {
    const deferrable = enforcers
      .filter((row) => row.kind === 'deferrable')
      .map((row) =>
        finding(
          'target.deferrable',
          'warning',
          `unique constraint ${row.what} is deferrable: it is not checked while changes are applied`,
          'a verification before cutover',
        ),
      )
    return [
      finding(id, 'ok', `allowed for ${server.user}: foreign keys and triggers rest until cutover`, needed),
      ...always,
      ...deferrable,
    ]
  }
  const grant =
    server.version >= 150_000
      ? `GRANT SET ON PARAMETER session_replication_role TO ${ident(server.user)};`
      : `ALTER ROLE ${ident(server.user)} SUPERUSER; -- until cutover`
  const acting = enforcers.filter(({ kind }) => !kind.startsWith('always '))
  if (acting.length === 0)
    return [
      finding(
        id,
        'warning',
        `not allowed for ${server.user}: foreign keys and triggers must not be created before cutover`,
        needed,
        grant,
      ),
      ...always,
    ]
  return [
    ...always,
    ...acting.map((row) =>
      finding(
        id,
        'blocker',
        `${row.kind} ${row.what} acts on replicated rows: ${server.user} may not switch it off`,
        `${needed}, or none until cutover`,
        `${grant}\n-- or\n${row.off};`,
      ),
    ),
  ]
}
