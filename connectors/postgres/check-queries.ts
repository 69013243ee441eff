import type pg from 'pg'
import type { TypeParts } from '../../src/model.ts'
import { qualified } from './queries.ts'

/** Tables asked in one statement. */
const occupiedAtOnce = 100

export type ServerRow = {
  version: number
  recovery: boolean
  read_only: boolean
  encoding: string
  wal_level: string
  max_slots: number
  max_senders: number
  senders: number
  slots: { name: string; active: boolean }[]
  keep_size: string
  idle_timeout: string | null
  user: string
  database: string
  superuser: boolean
  replication: boolean
  create_in_database: boolean
  large_objects: boolean
  prepared: number
}
export async function selectServer(client: pg.ClientBase): Promise<ServerRow | undefined> {
  const { rows } = await client.query<ServerRow>(`
    select current_setting('server_version_num')::int as version, pg_is_in_recovery() as recovery,
           current_setting('transaction_read_only') = 'on' as read_only, current_setting('server_encoding') as encoding,
           current_setting('wal_level') as wal_level, current_setting('max_replication_slots')::int as max_slots,
           current_setting('max_wal_senders')::int as max_senders,
           (select count(*)::int from pg_stat_activity where backend_type = 'walsender') as senders,
           (select coalesce(json_agg(json_build_object('name', slot_name, 'active', active) order by slot_name), '[]') from pg_replication_slots) as slots,
           current_setting('max_slot_wal_keep_size') as keep_size, current_setting('idle_replication_slot_timeout', true) as idle_timeout,
           current_user as user, current_database() as database, r.rolsuper as superuser,
           r.rolsuper or r.rolreplication or exists (
             select from pg_roles m where m.rolname in ('rds_replication', 'rds_superuser') and pg_has_role(current_user, m.oid, 'usage')) as replication,
           has_database_privilege(current_database(), 'create') as create_in_database,
           exists (select from pg_largeobject_metadata) as large_objects,
           (select count(*)::int from pg_prepared_xacts where database = current_database()) as prepared
      from pg_roles r where r.rolname = current_user`)
  return rows[0]
}

type RightsRow = { oid: number; read: boolean; write: boolean; owner: boolean; hidden: boolean; usage: boolean }
export async function selectRights(client: pg.ClientBase, tables: readonly number[]): Promise<readonly RightsRow[]> {
  const { rows } = await client.query<RightsRow>(
    `select c.oid, has_table_privilege(c.oid, 'select') as read,
            has_table_privilege(c.oid, 'select') and has_table_privilege(c.oid, 'insert') and has_table_privilege(c.oid, 'update')
              and has_table_privilege(c.oid, 'delete') and has_table_privilege(c.oid, 'truncate') as write,
            pg_has_role(current_user, c.relowner, 'usage') as owner,
            c.relrowsecurity and not coalesce((select rolsuper or rolbypassrls from pg_roles where rolname = current_user), false)
              and (c.relforcerowsecurity or not pg_has_role(current_user, c.relowner, 'usage')) as hidden,
            has_schema_privilege(c.relnamespace, 'usage') as usage
       from pg_class c where c.oid = any($1::oid[])`,
    [tables],
  )
  return rows
}

type PublicationCheck = { owner: boolean; tables: number[] }
export async function selectPublicationCheck(
  client: pg.ClientBase,
  name: string,
): Promise<PublicationCheck | undefined> {
  const { rows } = await client.query<PublicationCheck>(
    `select pg_has_role(current_user, p.pubowner, 'usage') as owner,
            array(select r.prrelid::int8 from pg_publication_rel r where r.prpubid = p.oid)::int4[] as tables
       from pg_publication p where p.pubname = $1`,
    [name],
  )
  return rows[0]
}

type SlotCheck = {
  plugin: string
  database: string
  holder: string | null
  pid: number | null
  wal_status: string | null
}
export async function selectSlotCheck(client: pg.ClientBase, name: string): Promise<SlotCheck | undefined> {
  const { rows } = await client.query<SlotCheck>(
    `select s.plugin, s.database, a.application_name as holder, s.active_pid as pid, s.wal_status
       from pg_replication_slots s left join pg_stat_activity a on a.pid = s.active_pid where s.slot_name = $1`,
    [name],
  )
  return rows[0]
}

type OpenTransaction = { pid: number; who: string; seconds: number }
/** Writing transactions older than a minute: what a new slot has to wait for. */
export async function selectOldTransactions(client: pg.ClientBase): Promise<readonly OpenTransaction[]> {
  const { rows } = await client.query<OpenTransaction>(`
    select pid, format('%s as %s', coalesce(nullif(application_name, ''), 'unnamed'), usename) as who,
           extract(epoch from now() - xact_start)::int as seconds
      from pg_stat_activity where backend_xid is not null and xact_start < now() - interval '1 minute' order by xact_start limit 10`)
  return rows
}

type ObjectRow = {
  oid: number | null
  schema: string
  name: string
  kind: string | null
  schema_create: boolean | null
}
/** What stands at the target under these names. */
export async function selectObjects(
  client: pg.ClientBase,
  tables: readonly { schema: string; name: string }[],
): Promise<readonly ObjectRow[]> {
  const { rows } = await client.query<ObjectRow>(
    `select c.oid, g.schema, g.name, c.relkind as kind,
            case when n.oid is not null then has_schema_privilege(n.oid, 'create') end as schema_create
       from unnest($1::text[], $2::text[]) g (schema, name)
       left join pg_namespace n on n.nspname = g.schema left join pg_class c on c.relnamespace = n.oid and c.relname = g.name`,
    [tables.map((table) => table.schema), tables.map((table) => table.name)],
  )
  return rows
}

/** Indexes of the tables that hold a row. All must be there and readable. */
export async function selectOccupied(
  client: pg.ClientBase,
  tables: readonly { schema: string; name: string }[],
): Promise<readonly number[]> {
  const found: number[] = []
  for (let from = 0; from < tables.length; from += occupiedAtOnce) {
    const asked = tables
      .slice(from, from + occupiedAtOnce)
      .map((table, i) => `select ${from + i} as i where exists (select from only ${qualified(table)})`)
    const { rows } = await client.query<{ i: number }>(asked.join(' union all '))
    found.push(...rows.map(({ i }) => i))
  }
  return found
}

/** Categories (typcategory) of types by name; null where there is no such type. */
export async function selectCategories(
  client: pg.ClientBase,
  types: readonly string[],
): Promise<ReadonlyMap<string, string | null>> {
  const { rows } = await client.query<{ type: string; category: string | null }>(
    `select g.type, (select t.typcategory from pg_type t where t.oid = to_regtype(g.type)) as category from unnest($1::text[]) g (type)`,
    [types],
  )
  return new Map(rows.map((row) => [row.type, row.category]))
}

type EnforcerRow = {
  table: number
  what: string
  kind: 'foreign key' | 'trigger' | 'rule' | 'deferrable' | 'outer key' | 'always trigger' | 'always rule'
  off: string
}
/** What acts on rows beside us, with the statement that stops it: foreign keys (`outer key`: of a table that is not among these), triggers, rules,
 *  deferrable unique constraints. `always`: on replicated rows too. A rule for updates, even a disabled one, forbids the statements that apply rows. */
export async function selectEnforcers(
  client: pg.ClientBase,
  tables: readonly number[],
): Promise<readonly EnforcerRow[]> {
  const { rows } = await client.query<EnforcerRow>(
    `with ours (oid) as (
       select unnest($1::oid[]) union select a.relid::oid from unnest($1::oid[]) t (oid), pg_partition_ancestors(t.oid) a (relid))
     select k.conrelid as "table", format('%s of %s', k.conname, k.conrelid::regclass) as what,
            case when k.conrelid in (table ours) then 'foreign key' else 'outer key' end as kind,
            format('alter table %s drop constraint %I', k.conrelid::regclass, k.conname) as off
       from pg_constraint k
      where k.contype = 'f' and k.conparentid = 0 and (k.conrelid in (table ours) or k.confrelid in (table ours))
     union all
     select t.tgrelid, format('%s on %s', t.tgname, t.tgrelid::regclass),
            case when t.tgenabled in ('A', 'R') then 'always trigger' else 'trigger' end,
            format('alter table %s disable trigger %I', t.tgrelid::regclass, t.tgname)
       from pg_trigger t where t.tgrelid = any($1::oid[]) and not t.tgisinternal and t.tgenabled <> 'D'
     union all
     select r.ev_class, format('%s on %s', r.rulename, r.ev_class::regclass),
            case when r.ev_type = '2' or r.ev_enabled in ('A', 'R') then 'always rule' else 'rule' end,
            format('drop rule %I on %s', r.rulename, r.ev_class::regclass)
       from pg_rewrite r where r.ev_class = any($1::oid[]) and (r.ev_type = '2' or r.ev_enabled <> 'D')
     union all
     select k.conrelid, format('%s of %s', k.conname, k.conrelid::regclass), 'deferrable',
            format('alter table %s drop constraint %I', k.conrelid::regclass, k.conname)
       from pg_constraint k where k.contype in ('u', 'x') and k.condeferrable and k.conrelid = any($1::oid[])
     order by 2`,
    [tables],
  )
  return rows
}

/** What enumerations and row types consist of that these tables' columns are made of, however deep. */
export async function selectTypeParts(client: pg.ClientBase, tables: readonly number[]): Promise<readonly TypeParts[]> {
  const { rows } = await client.query<TypeParts>(
    `with recursive used (oid) as (
       select atttypid from pg_attribute where attrelid = any($1::oid[]) and attnum > 0 and not attisdropped
       union
       select x.oid from used join pg_type t on t.oid = used.oid
         cross join lateral (
           select t.typbasetype where t.typtype = 'd'
           union all select t.typelem where t.typelem <> 0 and t.typlen = -1
           union all select a.atttypid from pg_attribute a where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
           union all select unnest(array[r.rngsubtype, r.rngtypid]) from pg_range r where t.oid in (r.rngtypid, r.rngmultitypid)
         ) x (oid)
     )
     select format_type(t.oid, null) as type, 'labels' as kind,
            (select coalesce(json_agg(json_build_object('name', e.enumlabel) order by e.enumsortorder), '[]') from pg_enum e where e.enumtypid = t.oid) as parts
       from used join pg_type t on t.oid = used.oid where t.typtype = 'e'
     union all
     select format_type(t.oid, null), 'fields',
            (select coalesce(json_agg(json_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod)) order by a.attnum), '[]')
               from pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped)
       from used join pg_type t on t.oid = used.oid where t.typtype = 'c' and t.typrelid >= 16384
      order by 1`,
    [tables],
  )
  return rows
}

type WriterRow = {
  origins: boolean
  own_schema: boolean | null
  origin_limit: number
  /** All there are at the server. */
  origin_names: string[]
}
export async function selectWriter(client: pg.ClientBase): Promise<WriterRow | undefined> {
  const { rows } = await client.query<WriterRow>(`
    select has_function_privilege('pg_replication_origin_session_setup(text)', 'execute')
             and has_function_privilege('pg_replication_origin_create(text)', 'execute') as origins,
           (select has_schema_privilege(oid, 'create') from pg_namespace where nspname = 'crossfade') as own_schema,
           coalesce(current_setting('max_active_replication_origins', true), current_setting('max_replication_slots'))::int as origin_limit,
           array(select roname from pg_replication_origin order by roname) as origin_names`)
  return rows[0]
}

/** Whether this role may switch triggers and foreign keys off for its own session: asked by doing it. */
export async function maySetReplicaRole(client: pg.ClientBase): Promise<boolean> {
  await client.query('begin')
  try {
    await client.query('set local session_replication_role = replica')
    return true
  } catch {
    return false
  } finally {
    await client.query('rollback')
  }
}

type BesideRow = { kind: 'materialized view' | 'sequence'; schema: string; name: string }
/** What holds data beside tables: materialized views, and sequences that no column owns or takes its values from. */
export async function selectBeside(client: pg.ClientBase): Promise<readonly BesideRow[]> {
  const { rows } = await client.query<BesideRow>(
    `select case c.relkind when 'm' then 'materialized view' else 'sequence' end as kind, n.nspname as schema, c.relname as name
       from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'crossfade') and c.relpersistence <> 't'
        and (c.relkind = 'm' or c.relkind = 'S' and not exists (
          select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.refclassid = 'pg_class'::regclass
             and d.refobjsubid > 0 and d.deptype in ('a', 'i')) and not exists (
          select from pg_depend d where d.classid = 'pg_attrdef'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = c.oid))
      order by 1, 2, 3`,
  )
  return rows
}

type HopelessRow = { table: number; column: string; type: string; row: boolean }
/** Columns with a value of one of these types in them, in whatever they are made of, or of a row of the catalog (`row`); one finding a column. */
export async function selectHopeless(
  client: pg.ClientBase,
  tables: readonly number[],
  types: readonly number[],
): Promise<readonly HopelessRow[]> {
  const { rows } = await client.query<HopelessRow>(
    `with recursive used ("table", attnum, type) as (
       select attrelid, attnum, atttypid from pg_attribute
        where attrelid = any($1::oid[]) and attnum > 0 and not attisdropped and attgenerated = ''
       union
       select u."table", u.attnum, x.oid from used u join pg_type t on t.oid = u.type
         cross join lateral (
           select t.typbasetype where t.typtype = 'd'
           union all select t.typelem where t.typelem <> 0 and t.typlen = -1
           union all select a.atttypid from pg_attribute a where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
           union all select r.rngsubtype from pg_range r where t.oid in (r.rngtypid, r.rngmultitypid)
         ) x (oid)
     )
     select distinct on (u."table", u.attnum) u."table", a.attname as column, format_type(t.oid, null) as type, t.typtype = 'c' as row
       from used u join pg_type t on t.oid = u.type join pg_attribute a on a.attrelid = u."table" and a.attnum = u.attnum
      where t.oid = any($2::oid[]) or (t.typtype = 'c' and t.typrelid < 16384)
      order by u."table", u.attnum, t.typtype = 'c' desc`,
    [tables, types],
  )
  return rows
}
