import type pg from 'pg'
import { Failure } from '../../src/errors.ts'
import type { TableId } from '../../src/model.ts'
import { needs } from './ddl-catalog.ts'
import { ident, literal, qualified } from './queries.ts'

export async function selectServerVersion(client: pg.ClientBase): Promise<number> {
  const { rows } = await client.query<{ server_version_num: string }>('show server_version_num')
  return Number(rows[0]?.server_version_num)
}

export type System = { readonly systemId: string; readonly timeline: number; readonly database: string }
/** On a replication connection. */
export async function identifySystem(client: pg.ClientBase): Promise<System> {
  const { rows } = await client.query<{ systemid: string; timeline: number | string; dbname: string }>(
    'IDENTIFY_SYSTEM',
  )
  return { systemId: rows[0]?.systemid ?? '', timeline: Number(rows[0]?.timeline), database: rows[0]?.dbname ?? '' }
}
/** Lines `timeline, place where it was left, why`. On a replication connection. */
export async function timelineHistory(client: pg.ClientBase, timeline: number): Promise<string> {
  const { rows } = await client.query<{ content: string | Buffer }>(`TIMELINE_HISTORY ${timeline}`)
  return String(rows[0]?.content ?? '')
}

export type SlotRow = {
  plugin: string
  database: string
  active_pid: number | null
  restart_lsn: string | null
  confirmed_flush_lsn: string | null
  wal_status: string | null
  safe_wal_size: string | null
  /** From version 17 on. */
  invalidation_reason: string | null
  wal_lsn: string
  insert_lsn: string
}
/** With the places written and inserted up to in the log, at or after every commit visible before. */
export async function selectSlot(client: pg.ClientBase, slot: string): Promise<SlotRow | undefined> {
  const { rows } = await client.query<SlotRow>(
    `select plugin, database, active_pid, restart_lsn, confirmed_flush_lsn, wal_status, safe_wal_size,
            to_jsonb(s) ->> 'invalidation_reason' as invalidation_reason,
            pg_current_wal_lsn() as wal_lsn, pg_current_wal_insert_lsn() as insert_lsn
       from pg_replication_slots s where slot_name = $1`,
    [slot],
  )
  return rows[0]
}
/** On a replication connection: waits for every transaction that is open now. */
export async function createSlot(
  client: pg.ClientBase,
  slot: string,
  temporary: boolean,
  serverVersion: number,
): Promise<{ readonly consistent_point: string; readonly snapshot_name: string }> {
  const kind = `${ident(slot)}${temporary ? ' TEMPORARY' : ''} LOGICAL pgoutput`
  const failover = serverVersion >= 170_000 && !temporary ? ', FAILOVER true' : ''
  const options = serverVersion >= 150_000 ? `(SNAPSHOT 'export'${failover})` : 'EXPORT_SNAPSHOT'
  const { rows } = await client.query<{ consistent_point: string; snapshot_name: string }>(
    `CREATE_REPLICATION_SLOT ${kind} ${options}`,
  )
  if (!rows[0]) throw new RangeError('the server created a slot and says nothing of it')
  return rows[0]
}
export async function dropSlot(client: pg.ClientBase, slot: string): Promise<void> {
  await client.query('select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1', [
    slot,
  ])
}

/** Of a process that streams; undefined where it is hidden from us or gone. */
export async function selectApplicationName(client: pg.ClientBase, pid: number): Promise<string | undefined> {
  const { rows } = await client.query<{ application_name: string | null }>(
    'select application_name from pg_stat_activity where pid = $1',
    [pid],
  )
  return rows[0]?.application_name ?? undefined
}
export async function terminateBackend(client: pg.ClientBase, pid: number): Promise<void> {
  await client.query('select pg_terminate_backend($1)', [pid])
}
/** Of this database's sessions those that read tables for a pipeline, other than its stream. */
export async function terminateReaders(client: pg.ClientBase, pipeline: string): Promise<void> {
  await client.query(
    `select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name = $1`,
    [`crossfade ${pipeline} reader`],
  )
}
export async function cancelBackend(client: pg.ClientBase, pid: number): Promise<void> {
  await client.query('select pg_cancel_backend($1)', [pid])
}
/** What the creation of a slot waits for, oldest first: any transaction with an id, of any database, prepared ones too. */
export async function selectBlockers(client: pg.ClientBase, besides: number): Promise<readonly string[]> {
  const { rows } = await client.query<{ blocker: string }>(
    `select blocker from (
       select a.xact_start as since,
              format('pid %s (%s, %s, %s, since %s)', l.pid, coalesce(a.usename, '?'),
                     coalesce(nullif(a.application_name, ''), 'no application name'), coalesce(a.state, '?'),
                     coalesce(to_char(a.xact_start, 'HH24:MI:SS'), '?')) as blocker
         from pg_locks l left join pg_stat_activity a on a.pid = l.pid
        where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted
          and l.pid is not null and l.pid not in ($1, pg_backend_pid())
       union all
       select p.prepared, format('prepared transaction %L of %s in %s', p.gid, p.owner, p.database) from pg_prepared_xacts p
     ) x order by since nulls last limit 20`,
    [besides],
  )
  return rows.map((row) => row.blocker)
}
/** Takes over an exported snapshot in a transaction of this session, and exports it again. */
export async function adoptSnapshot(client: pg.ClientBase, snapshot: string): Promise<string> {
  await client.query('begin isolation level repeatable read read only')
  await client.query(`set transaction snapshot ${literal(snapshot)}`)
  const { rows } = await client.query<{ id: string }>('select pg_export_snapshot() as id')
  return rows[0]?.id ?? ''
}

export async function createPublication(
  client: pg.ClientBase,
  publication: string,
  tables: readonly TableId[],
): Promise<void> {
  const list = tables.length === 0 ? '' : `for table ${tables.map(only).join(', ')}`
  await client.query(
    `create publication ${ident(publication)} ${list}
       with (publish = 'insert, update, delete, truncate', publish_via_partition_root = false)`,
  )
}
export async function addToPublication(
  client: pg.ClientBase,
  publication: string,
  tables: readonly TableId[],
): Promise<void> {
  await client.query(`alter publication ${ident(publication)} add table ${tables.map(only).join(', ')}`)
}
export async function takeFromPublication(
  client: pg.ClientBase,
  publication: string,
  tables: readonly TableId[],
): Promise<void> {
  await client.query(`alter publication ${ident(publication)} drop table ${tables.map(only).join(', ')}`)
}
/** Of these tables those that are no more. */
export async function selectDropped(client: pg.ClientBase, oids: readonly number[]): Promise<readonly number[]> {
  const { rows } = await client.query<{ oid: number }>(
    'select o::int4 as oid from unnest($1::oid[]) o where not exists (select from pg_class c where c.oid = o)',
    [oids],
  )
  return rows.map(({ oid }) => oid)
}
export async function dropPublication(client: pg.ClientBase, publication: string): Promise<void> {
  await client.query(`drop publication if exists ${ident(publication)}`)
}
function only(table: TableId): string {
  return `only ${qualified(table)}`
}

export type PublicationRow = {
  oid: number
  options: string
  /** Changes with its options, also when they are changed back: what was not sent in between is missing. */
  version: string
  relations: readonly PublishedRow[]
}
export type PublishedRow = {
  readonly oid: number
  /** Of its place in the publication: another one once it was taken out and put back. */
  readonly entry: number
  readonly schema: string
  readonly name: string
  /** r, or p of a partitioned table. */
  readonly kind: string
  readonly relfilenode: number
  /** Replica identity, with the columns of the index it rests on, or of the primary key where it rests on none. */
  readonly identity: string
  /** By the publication: a row filter or a list of columns. */
  readonly filtered: boolean
  /** Published columns: number, name, type, modifier, type as printed. */
  readonly attributes: readonly (readonly [number, string, number, number, string])[]
  /** Changes whenever any attribute was touched. */
  readonly touched: string
  /** Of a partitioned table: its leaves. */
  readonly leaves: readonly number[]
}
const published = `
  select c.oid::int8 as oid, r.oid::int8 as entry, n.nspname as schema, c.relname as name, c.relkind as kind, c.relfilenode::int8 as relfilenode,
         c.relreplident::text || ' ' || coalesce(
           (select min(case when i.indimmediate then array_to_string((i.indkey::int2[])[0:i.indnkeyatts - 1], ' ') else 'deferrable' end) from pg_index i where i.indrelid = c.oid
             and case c.relreplident when 'i' then i.indisreplident else i.indisprimary end), '') as identity,
         coalesce(to_jsonb(r) ->> 'prqual', to_jsonb(r) ->> 'prattrs') is not null as filtered,
         coalesce((select json_agg(json_build_array(a.attnum, a.attname, a.atttypid::int8, a.atttypmod,
                                                    format_type(a.atttypid, a.atttypmod)) order by a.attnum)
                     from pg_attribute a
                    where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''), '[]') as attributes,
         (select md5(string_agg(a.xmin::text || ' ' || a.attnum, ',' order by a.attnum))
            from pg_attribute a where a.attrelid = c.oid and a.attnum > 0) as touched,
         case when c.relkind = 'p' then
           coalesce((select json_agg(t.relid::oid::int8 order by t.relid::oid) from pg_partition_tree(c.oid) t where t.isleaf), '[]')
           else '[]' end as leaves
    from pg_publication_rel r join pg_class c on c.oid = r.prrelid join pg_namespace n on n.oid = c.relnamespace
   where r.prpubid = p.oid`
const options = (serverVersion: number): string =>
  `(to_jsonb(p) - 'oid' - 'pubname' - 'pubowner')::text || ${
    serverVersion >= 150_000 ? `(select count(*) from pg_publication_namespace s where s.pnpubid = p.oid)::text` : `'0'`
  }`
/** All of a publication that a change must be noticed of; undefined where there is none. */
export async function selectPublication(
  client: pg.ClientBase,
  publication: string,
  serverVersion: number,
): Promise<PublicationRow | undefined> {
  const { rows } = await client.query<PublicationRow>(
    `select p.oid, ${options(serverVersion)} as options, p.xmin::text as version,
            coalesce((select json_agg(x order by x.oid) from (${published}) x), '[]') as relations
       from pg_publication p where p.pubname = $1`,
    [publication],
  )
  return rows[0]
}
/** One column that is not dropped, with all that its place in a target's table needs. */
export type ShapeColumn = {
  readonly number: number
  readonly name: string
  readonly type: number
  readonly typmod: number
  /** Type and modifier as printed. */
  readonly declared: string
  /** Where it is not the type's own. */
  readonly collation: string | null
  /** Of all rows: a constraint that is not validated does not count. */
  readonly notNull: boolean
  /** s stored, v virtual; '': takes values. */
  readonly generated: string
  /** What rows older than the column hold, where they do not hold it themselves. */
  readonly missing: string | null
  /** Of a default or a generated column, with what it needs that does not come with the server. */
  readonly expression: string | null
  readonly needs: string | null
  /** The transaction that changed the column's definition last. */
  readonly touched: string
  /** It was dropped since. */
  readonly gone?: true
}
/** A published table as one look at the catalog showed it. */
export type Shape = PublishedRow & {
  readonly columns: readonly ShapeColumn[]
  readonly dropped: readonly Pick<ShapeColumn, 'number' | 'touched'>[]
  readonly isPartition: boolean
}
/** `transactions`: what the look saw. `lsn`: all it saw was written before. */
export type Shapes = { readonly transactions: Transactions; readonly lsn: string; readonly tables: readonly Shape[] }
/** Of all tables of the publication, or of `only` that one. */
export async function selectShapes(client: pg.ClientBase, publication: string, only?: number): Promise<Shapes> {
  const { rows } = await client.query<{ snapshot: string; lsn: string; tables: Shape[] }>(
    `select pg_current_snapshot()::text as snapshot, pg_current_wal_insert_lsn()::text as lsn, coalesce((
       select json_agg(to_jsonb(x) || jsonb_build_object(
         'isPartition', (select relispartition from pg_class where oid = x.oid),
         'dropped', coalesce((select json_agg(json_build_object('number', a.attnum, 'touched', a.xmin::text) order by a.attnum) from pg_attribute a
                               where a.attrelid = x.oid and a.attnum > 0 and a.attisdropped), '[]'),
         'columns', coalesce((
           select json_agg(json_build_object(
                    'number', a.attnum, 'name', a.attname, 'type', a.atttypid::int8, 'typmod', a.atttypmod,
                    'declared', format_type(a.atttypid, a.atttypmod),
                    'collation', case when a.attcollation <> t.typcollation then (
                      select format('%I.%I', cn.nspname, c.collname) from pg_collation c join pg_namespace cn on cn.oid = c.collnamespace
                       where c.oid = a.attcollation) end,
                    'notNull', a.attnotnull and not exists (
                      select from pg_constraint k where k.conrelid = a.attrelid and k.contype = 'n' and not k.convalidated and k.conkey = array[a.attnum]),
                    'generated', a.attgenerated,
                    'missing', case when a.atthasmissing then (a.attmissingval::text::text[])[1] end,
                    'expression', pg_get_expr(f.adbin, f.adrelid),
                    'needs', case when f.oid is not null then ${needs('pg_attrdef', 'f.oid')} end,
                    'touched', a.xmin::text) order by a.attnum)
             from pg_attribute a join pg_type t on t.oid = a.atttypid
             left join pg_attrdef f on f.adrelid = a.attrelid and f.adnum = a.attnum
            where a.attrelid = x.oid and a.attnum > 0 and not a.attisdropped), '[]')) order by x.oid)
         from (${published}${only === undefined ? '' : ' and r.prrelid = $2'}) x), '[]') as tables
       from pg_publication p where p.pubname = $1`,
    only === undefined ? [publication] : [publication, only],
  )
  const found = rows[0]
  return {
    transactions: readSnapshot(found?.snapshot ?? ''),
    lsn: found?.lsn ?? '0/0',
    tables: found?.tables ?? [],
  }
}
/** A type as people write it. */
export async function selectTypeName(client: pg.ClientBase, type: number, typmod: number): Promise<string> {
  const { rows } = await client.query<{ name: string }>('select format_type($1::oid, $2) as name', [type, typmod])
  return rows[0]?.name ?? `type ${type}`
}
/** A digest of the same, to be compared about once a second. */
export async function selectPublicationDigest(
  client: pg.ClientBase,
  publication: string,
  serverVersion: number,
): Promise<string | undefined> {
  const { rows } = await client.query<{ digest: string }>(
    `select md5(concat_ws('|', p.oid, ${options(serverVersion)}, p.xmin,
                          (select string_agg(x::text, '|' order by x.oid) from (${published}) x))) as digest
       from pg_publication p where p.pubname = $1`,
    [publication],
  )
  return rows[0]?.digest
}
/** Partitioned tables above these tables, each with all its leaves. */
export async function selectRoots(
  client: pg.ClientBase,
  tables: readonly TableId[],
): Promise<readonly { readonly schema: string; readonly name: string; readonly leaves: readonly TableId[] }[]> {
  const { rows } = await client.query<{ schema: string; name: string; leaves: TableId[] }>(
    `select rn.nspname as schema, r.relname as name,
            (select json_agg(json_build_object('schema', ln.nspname, 'name', l.relname))
               from pg_partition_tree(r.oid) t join pg_class l on l.oid = t.relid join pg_namespace ln on ln.oid = l.relnamespace
              where t.isleaf) as leaves
       from pg_class r join pg_namespace rn on rn.oid = r.relnamespace
      where r.relkind = 'p' and r.oid in (
        select a.relid from json_to_recordset($1) as w (schema text, name text)
          join pg_namespace n on n.nspname = w.schema join pg_class c on c.relnamespace = n.oid and c.relname = w.name
         cross join pg_partition_ancestors(c.oid) a (relid)
         where c.relispartition)
      order by 1, 2`,
    [JSON.stringify(tables)],
  )
  return rows
}

/** Outside of transactions, at its place in the log at once. Such a message carries no time: the server's own, in ms since 1970, stands before its
 *  content. */
export async function emitMessage(client: pg.ClientBase, prefix: string, content: Uint8Array): Promise<void> {
  const stamp = `convert_to((extract(epoch from clock_timestamp()) * 1000)::bigint || ' ', 'UTF8')`
  await client.query(`select pg_logical_emit_message(false, $1, ${stamp} || $2::bytea)`, [prefix, Buffer.from(content)])
}
/** A snapshot, by the low 32 bits of the ids as in the stream: transactions in progress, and the first id not given out yet. */
export type Transactions = { readonly next: number; readonly inProgress: ReadonlySet<number> }
/** A session that has a transaction, or may be committing a prepared one. */
export type Session = {
  readonly pid: number
  readonly xid: string | null
  /** At work in another database. */
  readonly elsewhere: boolean
  /** Had not committed at the moment asked about. */
  readonly before: boolean
  /** For a standby. */
  readonly waits: boolean
  /** What it does is not for us to see. */
  readonly hidden: boolean
}
/** `flushed`: the end of the log that is. `standbys`: those that a commit waits for, as configured. */
export type Uncommitted = {
  readonly flushed: string
  readonly standbys: string
  readonly sessions: readonly Session[]
  readonly prepared: readonly { readonly xid: string; readonly elsewhere: boolean }[]
}
/** Who has a transaction now, and what tells of it that it had not committed at `at`: a session that has been idle since, or works at a statement that
 *  began since. */
export async function selectUncommitted(client: pg.ClientBase, at: string): Promise<Uncommitted> {
  const { rows } = await client.query<Uncommitted>(
    `with session as (
       select pid, backend_xid::text as xid, coalesce(datname <> current_database(), false) as elsewhere,
              coalesce(backend_type = 'client backend' and state like 'idle%' or (state = 'active' and query_start > $1::timestamptz), false) as before,
              coalesce(wait_event = 'SyncRep', false) as waits, coalesce(query = '<insufficient privilege>', false) as hidden
         from pg_stat_activity where pid <> pg_backend_pid() and (backend_xid is not null or coalesce(backend_type, 'client backend') ~ 'client backend|worker')
     )
     select pg_current_wal_flush_lsn()::text as flushed, current_setting('synchronous_standby_names') as standbys,
            (select coalesce(json_agg(s), '[]') from session s where xid is not null or not (before or elsewhere)) as sessions,
            (select coalesce(json_agg(json_build_object('xid', transaction::text, 'elsewhere', database <> current_database())), '[]')
               from pg_prepared_xacts) as prepared`,
    [at],
  )
  return rows[0] ?? { flushed: '0/0', standbys: '', sessions: [], prepared: [] }
}
/** Sessions of others that work at a statement. */
export async function selectLoad(client: pg.ClientBase): Promise<number> {
  const { rows } = await client.query<{ working: number; hidden: number }>(
    `select count(*) filter (where backend_type = 'client backend' and state = 'active' and application_name not like 'crossfade %')::int as working,
            count(*) filter (where backend_type is null)::int as hidden from pg_stat_activity`,
  )
  const { working, hidden } = rows[0] ?? { working: 0, hidden: 0 }
  if (hidden > 0)
    throw new Failure('NO_RIGHTS', {
      object: 'pg_stat_activity',
      observed: 'whether other users’ sessions are at work is not shown',
      next: 'GRANT pg_read_all_stats TO the user of the source',
    })
  return working
}
function readSnapshot(text: string): Transactions {
  const [, next = '0', list = ''] = text.split(':')
  const low = (xid: string): number => Number(BigInt(xid) & 0xffff_ffffn)
  return { next: low(next), inProgress: new Set(list === '' ? [] : list.split(',').map(low)) }
}

type SequenceRow = { readonly schema: string; readonly name: string; readonly increment: string }
/** Sequences owned by a column of these tables or used by its default. */
export async function selectSequences(
  client: pg.ClientBase,
  tables: readonly TableId[],
): Promise<readonly SequenceRow[]> {
  const { rows } = await client.query<SequenceRow>(
    `with w as (
       select c.oid from json_to_recordset($1) as w (schema text, name text)
         join pg_namespace n on n.nspname = w.schema join pg_class c on c.relnamespace = n.oid and c.relname = w.name),
     related as (
       select oid from w union select a.relid::oid from w cross join pg_partition_ancestors(w.oid) a (relid)),
     used as (
       select d.objid as oid from pg_depend d join related on related.oid = d.refobjid
        where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i')
          and d.refobjsubid > 0
       union
       select d.refobjid from pg_attrdef f join related on related.oid = f.adrelid
         join pg_depend d on d.classid = 'pg_attrdef'::regclass and d.objid = f.oid and d.refclassid = 'pg_class'::regclass)
     select n.nspname as schema, s.relname as name, q.seqincrement as increment
       from used join pg_class s on s.oid = used.oid and s.relkind = 'S' join pg_namespace n on n.oid = s.relnamespace
       join pg_sequence q on q.seqrelid = s.oid
      order by 1, 2`,
    [JSON.stringify(tables)],
  )
  return rows
}
export async function selectSequenceState(
  client: pg.ClientBase,
  sequence: TableId,
): Promise<{ readonly last_value: string; readonly is_called: boolean } | undefined> {
  const { rows } = await client.query<{ last_value: string; is_called: boolean }>(
    `select last_value, is_called from ${qualified(sequence)}`,
  )
  return rows[0]
}

/** After how many ms without a sign of life the server ends a replication connection; a minute where it never does. */
export async function selectSenderTimeout(client: pg.ClientBase): Promise<number> {
  const { rows } = await client.query<{ ms: string }>(
    "select setting as ms from pg_settings where name = 'wal_sender_timeout'",
  )
  const ms = Number(rows[0]?.ms)
  return ms > 0 ? ms : 60_000
}
