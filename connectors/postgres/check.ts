import type pg from 'pg'
import type { Finding, TableFilter } from '../../src/connector.ts'
import { tableName, type TableId } from '../../src/model.ts'
import {
  selectBeside,
  selectOldTransactions,
  selectPublicationCheck,
  selectRights,
  selectServer,
  selectSlotCheck,
  type ServerRow,
} from './check-queries.ts'
import { checkTypes } from './check-types.ts'
import { namingLockers } from './lockers.ts'
import { ident, literal, qualified } from './queries.ts'
import { isRangeable } from './ranges.ts'
import { readCatalog, readLeftOut, tableSchema, type CatalogTable } from './schema.ts'

/** From here a table that cannot be copied in several ranges is worth a word. */
const large = 1_000_000
const oldest = 140_000
const newest = 190_000

export function finding(
  id: string,
  level: Finding['level'],
  observed: string,
  needed: string,
  remedy?: string,
): Finding {
  return { id, level, observed, needed, ...(remedy === undefined ? {} : { remedy }) }
}

/** The preflight of a source, under a lock_timeout. Changes nothing; what could not be asked is `unknown`. */
export async function checkSource(
  client: pg.Client,
  filter: TableFilter,
  pipeline: string,
): Promise<readonly Finding[]> {
  return await namingLockers(client, async () => {
    const server = await selectServer(client)
    if (!server) return [finding('source.role', 'unknown', 'the role is not in pg_roles', 'a role of the server')]
    const tables = await readCatalog(client, filter)
    return [
      ...checkVersion('source', server),
      ...checkLog(server),
      ...checkRoom(server, `crossfade_${pipeline}`),
      ...(await checkSlot(client, server, `crossfade_${pipeline}`)),
      ...(await checkTables(client, server, tables, `crossfade_${pipeline}`)),
      ...checkKeys(tables, server),
      ...(await checkTypes(client, tables)),
      ...(await checkOthers(client, server, filter)),
    ]
  })
}

export function checkVersion(end: 'source' | 'target', server: ServerRow): readonly Finding[] {
  const version = `${Math.floor(server.version / 10_000)}.${server.version % 10_000}`
  const id = `${end}.version`
  const needed = 'version 14 to 18'
  const found = [
    server.version < oldest
      ? finding(id, 'blocker', version, needed, 'Upgrade the server')
      : server.version >= newest
        ? finding(id, 'warning', `${version}, newer than what was tested`, needed)
        : finding(id, 'ok', version, needed),
  ]
  if (server.recovery)
    found.push(
      finding(`${end}.primary`, 'blocker', 'the server is a standby', 'the primary', 'Give the address of the primary'),
    )
  if (server.encoding !== 'UTF8')
    found.push(
      finding(
        `${end}.encoding`,
        server.encoding === 'SQL_ASCII' ? 'blocker' : 'warning',
        `the database is encoded in ${server.encoding}`,
        'UTF8, or text that can be converted to it',
        server.encoding === 'SQL_ASCII'
          ? `It says nothing about its bytes: load a dump of it into a database made with ENCODING 'UTF8', after converting what is not, and use that one`
          : undefined,
      ),
    )
  return found
}

function checkLog(server: ServerRow): readonly Finding[] {
  const found = [
    server.wal_level === 'logical'
      ? finding('source.wal_level', 'ok', 'logical', 'logical')
      : finding(
          'source.wal_level',
          'blocker',
          server.wal_level,
          'logical',
          `ALTER SYSTEM SET wal_level = logical; -- then restart the server`,
        ),
    server.replication
      ? finding('source.replication', 'ok', `${server.user} may replicate`, 'the REPLICATION attribute')
      : finding(
          'source.replication',
          'blocker',
          `${server.user} may not replicate`,
          'the REPLICATION attribute',
          `ALTER ROLE ${ident(server.user)} REPLICATION;`,
        ),
    server.keep_size === '-1'
      ? finding(
          'source.max_slot_wal_keep_size',
          'warning',
          'unlimited: while the pipeline stands still, the log of the source grows until its disk is full',
          'a limit that fits the disk, or an eye on it',
          `ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf();`,
        )
      : finding(
          'source.max_slot_wal_keep_size',
          'ok',
          `${server.keep_size}: a pipeline further behind has to copy again`,
          'a limit that fits the disk',
        ),
  ]
  if (server.idle_timeout !== null && server.idle_timeout !== '0')
    found.push(
      finding(
        'source.idle_replication_slot_timeout',
        'warning',
        `${server.idle_timeout}: a pipeline that stands still longer has to copy again`,
        '0',
        'ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();',
      ),
    )
  return found
}

/** Our slot and a temporary one for a copy. */
function checkRoom(server: ServerRow, name: string): readonly Finding[] {
  const wanted = server.slots.some((slot) => slot.name === name) ? 1 : 2
  const free = server.max_slots - server.slots.length
  const unused = server.slots.filter((slot) => !slot.active && slot.name !== name).map((slot) => slot.name)
  const remedies = [
    ...unused.map((slot) => `SELECT pg_drop_replication_slot(${literal(slot)}); -- if nobody needs it`),
    `ALTER SYSTEM SET max_replication_slots = ${server.max_slots + wanted}; -- then restart the server`,
  ]
  const freeSenders = server.max_senders - server.senders
  return [
    free >= wanted
      ? finding('source.slots', 'ok', `${free} free`, `${wanted} free`)
      : finding(
          'source.slots',
          'blocker',
          `${free} of ${server.max_slots} replication slots free`,
          `${wanted} free`,
          remedies.join('\n'),
        ),
    freeSenders >= 2
      ? finding('source.senders', 'ok', `${freeSenders} free`, '2 free')
      : finding(
          'source.senders',
          'blocker',
          `${freeSenders} of ${server.max_senders} senders free`,
          '2 free',
          `ALTER SYSTEM SET max_wal_senders = ${server.max_senders + 2}; -- then restart the server`,
        ),
  ]
}

async function checkSlot(client: pg.Client, server: ServerRow, name: string): Promise<readonly Finding[]> {
  const slot = await selectSlotCheck(client, name)
  if (!slot) return []
  const id = 'source.slot'
  if (slot.plugin !== 'pgoutput' || slot.database !== server.database)
    return [
      finding(
        id,
        'blocker',
        `slot ${name} is one of ${slot.plugin} in database ${slot.database}`,
        'a slot of ours, or none',
        'Choose another pipeline name',
      ),
    ]
  if (slot.wal_status === 'lost')
    return [
      finding(
        id,
        'blocker',
        `slot ${name} lost its place: the log it needs is gone`,
        'a slot that can go on',
        `SELECT pg_drop_replication_slot(${literal(name)}); -- then start a new pipeline`,
      ),
    ]
  if (slot.pid !== null && !slot.holder?.startsWith('crossfade '))
    return [
      finding(
        id,
        'blocker',
        `slot ${name} is held by ${slot.holder || 'an unnamed client'} (process ${slot.pid})`,
        'nobody else reads from it',
        `SELECT pg_terminate_backend(${slot.pid}); -- or choose another pipeline name`,
      ),
    ]
  return [finding(id, 'ok', `slot ${name} is there`, 'a slot of ours, or none')]
}

async function checkTables(
  client: pg.Client,
  server: ServerRow,
  tables: readonly CatalogTable[],
  publication: string,
): Promise<readonly Finding[]> {
  if (tables.length === 0)
    return [
      finding(
        'source.tables',
        'blocker',
        'no table fits tables.include and tables.exclude',
        'one table or more',
        'Change tables.include',
      ),
    ]
  const found = [
    finding('source.tables', 'ok', `${tables.length} table${tables.length === 1 ? '' : 's'}`, 'one table or more'),
  ]
  const rights = new Map(
    (
      await selectRights(
        client,
        tables.map((table) => table.oid),
      )
    ).map((row) => [row.oid, row]),
  )
  const user = ident(server.user)
  const noUsage = new Set(
    tables.filter((table) => rights.get(table.oid)?.usage === false).map((table) => table.table.schema),
  )
  for (const schema of noUsage)
    found.push(
      finding(
        'source.usage',
        'blocker',
        `${server.user} may not look into schema ${schema}`,
        'USAGE',
        `GRANT USAGE ON SCHEMA ${ident(schema)} TO ${user};`,
      ),
    )
  for (const { oid, table } of tables) {
    const row = rights.get(oid)
    if (row?.read === false)
      found.push(
        finding(
          'source.select',
          'blocker',
          `${server.user} may not read ${tableName(table)}`,
          'SELECT',
          `GRANT SELECT ON ${qualified(table)} TO ${user};`,
        ),
      )
    if (row?.hidden)
      found.push(
        finding(
          'source.row_security',
          'blocker',
          `row security hides rows of ${tableName(table)} from ${server.user}`,
          'a role that sees every row',
          `ALTER ROLE ${user} BYPASSRLS;`,
        ),
      )
  }
  return [...found, ...(await checkMayPublish(client, server, tables, rights, publication))]
}

/** Whether the publication has these tables, or we may bring it there. */
async function checkMayPublish(
  client: pg.Client,
  server: ServerRow,
  tables: readonly CatalogTable[],
  rights: ReadonlyMap<number, { readonly owner: boolean }>,
  publication: string,
): Promise<readonly Finding[]> {
  const existing = await selectPublicationCheck(client, publication)
  const missing = tables.filter((table) => !existing?.tables.includes(table.oid))
  const mayMake = server.superuser || (existing ? existing.owner : server.create_in_database)
  const foreign = server.superuser ? [] : missing.filter((table) => !rights.get(table.oid)?.owner)
  if (missing.length === 0 || (mayMake && foreign.length === 0)) return []
  return [
    finding(
      'source.publication',
      'blocker',
      foreign.length > 0
        ? `${server.user} does not own ${foreign.map(({ table }) => tableName(table)).join(', ')}`
        : `${server.user} may not create a publication in ${server.database}`,
      `publication ${publication} with these tables, or the rights to make it`,
      `${existing ? `ALTER PUBLICATION ${ident(publication)} ADD` : `CREATE PUBLICATION ${ident(publication)} FOR`} TABLE ${missing.map(({ table }) => `ONLY ${qualified(table)}`).join(', ')}; -- as the owner or a superuser`,
    ),
  ]
}

/** Once a table is published, the source itself refuses updates and deletes of rows that it cannot identify. */
function checkKeys(tables: readonly CatalogTable[], server: ServerRow): readonly Finding[] {
  const found: Finding[] = []
  const pinned: TableId[] = []
  for (const table of tables) {
    const name = tableName(table.table)
    // From version 18 on it refuses them too where the old row would have a column that is not published.
    const hides = server.version >= 180_000 && table.columns.some((column) => column.generated)
    if (hides && table.replicaIdentity === 'full')
      found.push(
        finding(
          'source.identity',
          'blocker',
          `${name} has REPLICA IDENTITY FULL and a generated column: once published, the source would refuse its updates and deletes`,
          'a primary key to identify rows by',
          byPrimaryKey(table),
        ),
      )
    else if (table.replicaIdentity === 'nothing' || (table.replicaIdentity !== 'full' && table.key.length === 0)) {
      const why =
        table.replicaIdentity === 'nothing'
          ? 'has REPLICA IDENTITY NOTHING'
          : table.primaryKey?.deferrable
            ? 'has a deferrable primary key, which identifies no row'
            : table.primaryKey
              ? 'has a key that the log cannot show'
              : 'has no primary key'
      found.push(
        finding(
          'source.identity',
          'blocker',
          `${name} ${why}: once published, the source would refuse its updates and deletes`,
          'a primary key, or whole old rows in the log',
          hides
            ? byPrimaryKey(table)
            : `ALTER TABLE ${qualified(table.table)} REPLICA IDENTITY FULL; -- or add a primary key, or exclude the table`,
        ),
      )
    } else if (table.key.length === 0)
      found.push(
        finding(
          'source.keyless',
          'warning',
          `${name} has no key: its changes are applied one by one, and each looks at the whole table`,
          'a primary key',
        ),
      )
    else if (tableSchema(table, 1).pinned) pinned.push(table.table)
    const key = table.columns.filter((column) => table.key.includes(column.attnum))
    if (table.estimatedRows >= large && !isRangeable(key))
      found.push(
        finding(
          'source.range',
          'warning',
          `${name} is copied in one piece, by one connection: its key may sort differently elsewhere`,
          'a key of numbers, times, uuids, or text of collation C',
        ),
      )
  }
  if (pinned.length > 0)
    found.push(
      finding(
        'source.pinned',
        'ok',
        `applied in order, in one partition each: ${pinned.map(tableName).join(', ')}`,
        'for more at once: no unique constraint beside the key, and a key whose equal values are equal in bytes',
      ),
    )
  return found
}

function byPrimaryKey(table: CatalogTable): string {
  const generated = new Set(table.columns.filter((column) => column.generated).map(({ attnum }) => attnum))
  const key = table.primaryKey
  const fits = key && !key.deferrable && !key.columns.some((attnum) => generated.has(attnum))
  const alter = `ALTER TABLE ${qualified(table.table)}`
  if (fits) return `${alter} REPLICA IDENTITY DEFAULT;`
  if (key) return 'Give it a key that is neither deferrable nor of generated columns, or exclude the table'
  return `${alter} ADD COLUMN crossfade_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, REPLICA IDENTITY DEFAULT; -- rewrites the table; or a key of its own columns, or exclude it`
}

async function checkOthers(client: pg.Client, server: ServerRow, filter: TableFilter): Promise<readonly Finding[]> {
  const found: Finding[] = []
  for (const { table, reason, unlogged } of await readLeftOut(client, filter)) {
    const exclude = 'name it in tables.exclude, and this is said no more'
    found.push(
      finding(
        'source.left_out',
        'warning',
        `${tableName(table)} is left out: ${reason}`,
        'an ordinary table',
        unlogged ? `ALTER TABLE ${qualified(table)} SET LOGGED; -- or ${exclude}` : `Or ${exclude}`,
      ),
    )
  }
  for (const { kind, ...name } of await selectBeside(client))
    if (filter(name))
      found.push(
        kind === 'sequence'
          ? finding(
              'source.left_out',
              'warning',
              `sequence ${tableName(name)} is left out: it belongs to no table`,
              'a sequence owned by a column, or one that is brought by hand',
              `SELECT format('SELECT setval(%L, %s, %L);', ${literal(qualified(name))}, last_value, is_called) FROM ${qualified(name)}; -- at the cutover; its answer is to be run at the target`,
            )
          : finding(
              'source.left_out',
              'warning',
              `materialized view ${tableName(name)} is left out: it is computed from tables`,
              'its definition at the target, refreshed there',
              `REFRESH MATERIALIZED VIEW ${qualified(name)}; -- at the target, after the cutover`,
            ),
      )
  if (server.large_objects)
    found.push(
      finding(
        'source.large_objects',
        'warning',
        'the database has large objects, which are not copied',
        'bytea columns',
      ),
    )
  for (const { pid, who, seconds } of await selectOldTransactions(client))
    found.push(
      finding(
        'source.transactions',
        'warning',
        `a transaction of ${who} (process ${pid}) has been open for ${seconds} s: a copy waits for its end`,
        'short transactions',
        `SELECT pg_terminate_backend(${pid}); -- if it is stuck`,
      ),
    )
  if (server.prepared > 0)
    found.push(
      finding(
        'source.prepared',
        'warning',
        `${server.prepared} prepared transaction${server.prepared === 1 ? '' : 's'}: a copy waits for the end of each`,
        'none',
        'SELECT gid FROM pg_prepared_xacts; -- then COMMIT PREPARED or ROLLBACK PREPARED each',
      ),
    )
  return found
}
