import type pg from 'pg'
import type { TableId } from '../../src/model.ts'
import type { CatalogType } from './schema.ts'

/** Quotes one identifier. The only place that does. */
export function ident(name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}
/** Quotes a text literal under standard_conforming_strings, which every session of ours pins. */
export function literal(text: string): string {
  return `'${text.replaceAll("'", "''")}'`
}
/** Schema and name, quoted. */
export function qualified(table: { readonly schema: string; readonly name: string }): string {
  return `${ident(table.schema)}.${ident(table.name)}`
}

export type RelationRow = {
  oid: number
  schema: string
  name: string
  relfilenode: number
  relkind: string
  relpersistence: string
  relispartition: boolean
  relreplident: string
  relrowsecurity: boolean
  relforcerowsecurity: boolean
  rows: number
  extension: string | null
  /** Has a column that is not generated. */
  filled: boolean
  /** Root first. */
  ancestors: { schema: string; name: string }[] | null
  parents: { schema: string; name: string }[] | null
}
/** Tables, partitioned ones and foreign ones of users, in the order of their names. */
export async function selectRelations(client: pg.ClientBase, only?: TableId): Promise<readonly RelationRow[]> {
  const { rows } = await client.query<RelationRow>(
    `
    select c.oid, n.nspname as schema, c.relname as name, c.relfilenode, c.relkind, c.relpersistence, c.relispartition,
           c.relreplident, c.relrowsecurity, c.relforcerowsecurity,
           case when c.relkind <> 'r' then 0
                when c.reltuples >= 0 and c.relpages > 0
                then round((c.reltuples::float8 / c.relpages) * (pg_relation_size(c.oid) / current_setting('block_size')::int))
                else round(pg_relation_size(c.oid) / 100.0) end::float8 as rows,
           (select x.extname from pg_depend d join pg_extension x on x.oid = d.refobjid
             where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.refclassid = 'pg_extension'::regclass
               and d.deptype = 'e' limit 1) as extension,
           exists (select from pg_attribute f
                    where f.attrelid = c.oid and f.attnum > 0 and not f.attisdropped and f.attgenerated = '') as filled,
           case when c.relispartition then
             (select json_agg(json_build_object('schema', an.nspname, 'name', a.relname) order by p.level desc)
                from pg_partition_ancestors(c.oid) with ordinality p (oid, level)
                join pg_class a on a.oid = p.oid join pg_namespace an on an.oid = a.relnamespace
               where a.oid <> c.oid) end as ancestors,
           case when not c.relispartition then
             (select json_agg(json_build_object('schema', pn.nspname, 'name', p.relname) order by i.inhseqno)
                from pg_inherits i join pg_class p on p.oid = i.inhparent join pg_namespace pn on pn.oid = p.relnamespace
               where i.inhrelid = c.oid) end as parents
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.relkind in ('r', 'p', 'f') and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'crossfade')
       and ($1::text is null or (n.nspname = $1 and c.relname = $2))
     order by n.nspname collate "C", c.relname collate "C"`,
    [only?.schema, only?.name],
  )
  return rows
}

type AttributeRow = {
  attrelid: number
  attnum: number
  attname: string
  atttypid: number
  atttypmod: number
  type: string
  cast_type: string
  attnotnull: boolean
  attgenerated: string
  attidentity: string
  missing: string | null
  default: string | null
  collation: string | null
  provider: string | null
  deterministic: boolean | null
  version: string | null
}
/** Provider and actual version of collation `c`, in SQL beside the database `d`. The server keeps the default collation's provider with the database; 14
 *  knows only libc there, and not its version. */
export function collationFacts(version: number): { readonly provider: string; readonly version: string } {
  const [provider, actual] =
    version >= 150_000 ? ['d.datlocprovider', 'pg_database_collation_actual_version(d.oid)'] : [`'c'`, 'null']
  return {
    provider: `case when c.oid = 100 then ${provider} else c.collprovider end`,
    version: `case when c.oid = 100 then ${actual} when c.oid is not null then pg_collation_actual_version(c.oid) end`,
  }
}
/** Columns that are not dropped. `cast_type` implies no length: -1, unlike null, never prints as character(1) or bit(1). */
export async function selectAttributes(
  client: pg.ClientBase,
  tables: readonly number[],
): Promise<readonly AttributeRow[]> {
  const { provider, version } = collationFacts(await serverVersion(client))
  const { rows } = await client.query<AttributeRow>(
    // Of the types that occur only: what the server guesses about all of them makes it compare each with each column.
    `with recursive base (type, base) as (
       select distinct atttypid, atttypid from pg_attribute where attrelid = any($1::oid[]) and attnum > 0 and not attisdropped
       union all
       select b.type, t.typbasetype from base b join pg_type t on t.oid = b.base where t.typtype = 'd'
     )
     select a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, format_type(a.atttypid, a.atttypmod) as type,
            format_type(b.base, -1) as cast_type, a.attnotnull, a.attgenerated, a.attidentity,
            a.attmissingval::text as missing, pg_get_expr(f.adbin, f.adrelid) as default,
            case when c.oid = 100 then d.datcollate when c.oid is not null
                 then format('%I.%I', cn.nspname, c.collname) end as collation,
            ${provider} as provider, c.collisdeterministic as deterministic, ${version} as version
       from pg_attribute a
       join base b on b.type = a.atttypid join pg_type bt on bt.oid = b.base and bt.typtype <> 'd'
       join pg_database d on d.datname = current_database()
       left join pg_attrdef f on f.adrelid = a.attrelid and f.adnum = a.attnum
       left join pg_collation c on c.oid = a.attcollation
       left join pg_namespace cn on cn.oid = c.collnamespace
      where a.attrelid = any($1::oid[]) and a.attnum > 0 and not a.attisdropped
      order by a.attrelid, a.attnum`,
    [tables],
  )
  return rows
}

/** All types these tables' columns are made of: arrays' elements and domains' bases too. */
export async function selectTypes(client: pg.ClientBase, tables: readonly number[]): Promise<readonly CatalogType[]> {
  const { rows } = await client.query<CatalogType>(
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
     select t.oid, n.nspname as schema, t.typname as name, t.typtype as kind, t.typbasetype as base, t.typtypmod as typmod,
            t.typelem as element, t.typelem <> 0 and t.typlen = -1 as "isArray", t.typsend <> 0 and t.typreceive <> 0 as sends,
            (select json_build_object('name', format('%I.%I', pn.nspname, p.proname), 'arguments', p.pronargs)
               from pg_proc p join pg_namespace pn on pn.oid = p.pronamespace where p.oid = t.typinput) as input,
            (select format('%I.%I', pn.nspname, p.proname)
               from pg_proc p join pg_namespace pn on pn.oid = p.pronamespace where p.oid = t.typoutput
                and (p.proargtypes[0] = t.oid or (select a.typtype = 'p' from pg_type a where a.oid = p.proargtypes[0]))) as output,
            array(select s.typname::text from pg_cast c join pg_type s on s.oid = c.castsource
                   where c.casttarget = t.oid and c.castmethod = 'f' and c.castsource in (25, 1042, 1043)) as "textCasts",
            exists(select from pg_cast c where c.castsource = t.oid and c.casttarget = 25) as "castToText"
       from used join pg_type t on t.oid = used.oid join pg_namespace n on n.oid = t.typnamespace`,
    [tables],
  )
  return rows
}

export type IndexRow = {
  indrelid: number
  indexrelid: number
  name: string
  schema: string
  indisprimary: boolean
  indimmediate: boolean
  indisreplident: boolean
  /** Neither partial nor over expressions. */
  plain: boolean
  /** Key columns only; 0 for an expression. */
  columns: number[]
}
/** Unique and exclusion indexes that are valid. */
export async function selectUniqueIndexes(
  client: pg.ClientBase,
  tables: readonly number[],
): Promise<readonly IndexRow[]> {
  const { rows } = await client.query<IndexRow>(
    `select i.indrelid, i.indexrelid, c.relname as name, n.nspname as schema, i.indisprimary, i.indimmediate,
            i.indisreplident, i.indisunique and i.indpred is null and i.indexprs is null as plain,
            array(select k from unnest(i.indkey::int2[]) with ordinality u (k, at) where at <= i.indnkeyatts order by at) as columns
       from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace
      where i.indrelid = any($1::oid[]) and (i.indisunique or i.indisexclusion) and i.indislive
      order by i.indrelid, c.relname collate "C"`,
    [tables],
  )
  return rows
}

/** As a number: 180004 is 18.4. */
export async function serverVersion(client: pg.ClientBase): Promise<number> {
  const { rows } = await client.query<{ version: number }>(
    `select current_setting('server_version_num')::int as version`,
  )
  return rows[0]?.version ?? 0
}

type Seen = {
  /** The table that statements find is the one the snapshot sees, with the same file. */
  same: boolean
  /** Columns as the snapshot sees them, and as statements find them: number, name, type (found: through domains). */
  seen: readonly string[]
  found: readonly string[]
}
/**
 * Begins a reading transaction at a snapshot ('now': at this moment) and locks the table before anything is read. What
 * statements resolve (catalog as it is) and what the snapshot sees (catalog as it was) may differ: both are returned.
 */
export async function beginReading(
  client: pg.ClientBase,
  at: string,
  table: string,
  id: { readonly schema: string; readonly name: string },
): Promise<Seen | 'no snapshot'> {
  await client.query('begin isolation level repeatable read read only')
  if (at !== 'now') {
    try {
      await client.query(`set transaction snapshot ${literal(at)}`)
    } catch (error) {
      // Its file is gone, or the session that exported it is.
      if (error instanceof Error && 'code' in error && /^(22023|42704|55000)$/.test(String(error.code)))
        return 'no snapshot'
      throw error
    }
  }
  await client.query(`lock table only ${table} in access share mode`)
  const { rows } = await client.query<{ same: boolean; columns: string[] | null }>(
    `select c.oid = $1::regclass and pg_relation_filenode(c.oid) = c.relfilenode as same,
            (select array_agg(format('%s %s %s', a.attnum, a.attname, a.atttypid) order by a.attnum) from pg_attribute a
              where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns
       from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = $2 and c.relname = $3`,
    [table, id.schema, id.name],
  )
  const seen = rows[0]
  const now = await client.query(`select * from only ${table} limit 0`)
  return {
    same: seen?.same === true,
    seen: seen?.columns ?? [],
    found: now.fields.map((field) => `${field.columnID} ${field.name} ${field.dataTypeID}`),
  }
}

/** Held to the end of the transaction: one process at a time makes definitions in a database. */
export async function lockDdl(client: pg.ClientBase): Promise<void> {
  await client.query(`select pg_advisory_xact_lock(hashtextextended('crossfade definitions', 0))`)
}

/** Copies of a cluster share its system identifier, and their databases' oids; no two postmasters began in the same microsecond. */
export async function selectIdentity(client: pg.ClientBase): Promise<string> {
  const { rows } = await client.query<{ identity: string }>(
    `select pg_postmaster_start_time() || ' ' || oid as identity from pg_database where datname = current_database()`,
  )
  return rows[0]?.identity ?? ''
}

/** Whether the server works for the session of this process; not, when it waits for its client or for something to send to it. */
export async function selectWorking(client: pg.ClientBase, pid: number): Promise<boolean> {
  const { rows } = await client.query<{ works: boolean }>(
    `select state = 'active' and coalesce(wait_event_type, '') not in ('Client', 'Activity') as works
       from pg_stat_activity where pid = $1`,
    [pid],
  )
  return rows[0]?.works === true
}
