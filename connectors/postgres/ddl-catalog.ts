import type pg from 'pg'

/** What an object needs that does not come with the server, in SQL; columns `missing` (text or null) and `extensions` (text[]). */
export function needs(classId: string, oid: string): string {
  return `(select string_agg(distinct pg_describe_object(d.refclassid, d.refobjid, 0), ', ') filter (where e.extname is null)
             from pg_depend d left join pg_depend ed on ed.classid = d.refclassid and ed.objid = d.refobjid and ed.deptype = 'e'
             left join pg_extension e on e.oid = ed.refobjid
            where d.classid = '${classId}'::regclass and d.objid = ${oid} and d.refobjid >= 16384
              and d.refclassid in ('pg_proc'::regclass, 'pg_opclass'::regclass, 'pg_operator'::regclass,
                                   'pg_ts_config'::regclass, 'pg_opfamily'::regclass))`
}

export type TypeRow = {
  oid: number
  schema: string
  name: string
  kind: string
  extension: string | null
  /** Relation of a composite type: c for a free one, else the kind of the table it belongs to. */
  relkind: string | null
  labels: string[] | null
  base: string | null
  collation: string | null
  notnull: boolean
  default: string | null
  checks: { name: string; def: string; missing: string | null }[] | null
  attributes: { name: string; type: string; collation: string | null }[] | null
  /** Of a range. `foreign`: a function or an operator class that does not come with the server, and decides what its values are. */
  range: {
    subtype: string
    multirange: { schema: string; name: string }
    collation: string | null
    opclass: string | null
    diff: string | null
    foreign: string | null
  } | null
  /** Types it is made of. */
  uses: number[]
}
export async function selectUserTypes(client: pg.ClientBase, types: readonly number[]): Promise<readonly TypeRow[]> {
  const { rows } = await client.query<TypeRow>(
    `select t.oid, n.nspname as schema, t.typname as name, t.typtype as kind, rc.relkind,
            (select x.extname from pg_depend d join pg_extension x on x.oid = d.refobjid
              where d.classid = 'pg_type'::regclass and d.objid = t.oid and d.deptype = 'e') as extension,
            (select array_agg(e.enumlabel::text order by e.enumsortorder) from pg_enum e where e.enumtypid = t.oid) as labels,
            case when t.typtype = 'd' then format_type(t.typbasetype, t.typtypmod) end as base,
            case when t.typtype = 'd' and t.typcollation <> b.typcollation
                 then (select format('%I.%I', cn.nspname, c.collname) from pg_collation c join pg_namespace cn on cn.oid = c.collnamespace
                        where c.oid = t.typcollation) end as collation,
            t.typnotnull as notnull, pg_get_expr(t.typdefaultbin, 0) as default,
            (select json_agg(json_build_object('name', k.conname, 'def', pg_get_constraintdef(k.oid), 'missing', ${needs('pg_constraint', 'k.oid')}) order by k.conname)
               from pg_constraint k where k.contypid = t.oid and k.contype = 'c') as checks,
            (select json_agg(json_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod), 'collation',
                      case when a.attcollation <> at.typcollation
                           then (select format('%I.%I', cn.nspname, c.collname) from pg_collation c join pg_namespace cn on cn.oid = c.collnamespace
                                  where c.oid = a.attcollation) end) order by a.attnum)
               from pg_attribute a join pg_type at on at.oid = a.atttypid
              where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped) as attributes,
            (select json_build_object('subtype', format_type(r.rngsubtype, -1), 'multirange', json_build_object('schema', mn.nspname, 'name', m.typname),
                      'collation', case when r.rngcollation <> st.typcollation
                           then (select format('%I.%I', cn.nspname, c.collname) from pg_collation c join pg_namespace cn on cn.oid = c.collnamespace
                                  where c.oid = r.rngcollation) end,
                      'opclass', case when not o.opcdefault then format('%I.%I', opn.nspname, o.opcname) end,
                      'diff', case when r.rngsubdiff <> 0 and r.rngsubdiff < 16384
                           then (select format('pg_catalog.%I', p.proname) from pg_proc p where p.oid = r.rngsubdiff) end,
                      'foreign', case when r.rngcanonical <> 0 then 'function ' || r.rngcanonical::text
                                      when o.oid >= 16384 and not o.opcdefault then 'operator class ' || o.opcname end)
               from pg_range r join pg_type st on st.oid = r.rngsubtype
               join pg_type m on m.oid = r.rngmultitypid join pg_namespace mn on mn.oid = m.typnamespace
               join pg_opclass o on o.oid = r.rngsubopc join pg_namespace opn on opn.oid = o.opcnamespace
              where r.rngtypid = t.oid) as range,
            array(select x from unnest(array[t.typbasetype, b.typelem, t.typelem] ||
                    array(select a.atttypid from pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped) ||
                    array(select ae.typelem from pg_attribute a join pg_type ae on ae.oid = a.atttypid
                           where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped) ||
                    array(select unnest(array[r.rngsubtype, r.rngtypid]) from pg_range r where t.oid in (r.rngtypid, r.rngmultitypid))) x where x >= 16384 and x <> t.oid)::int8[]::int4[] as uses
       from pg_type t join pg_namespace n on n.oid = t.typnamespace
       left join pg_class rc on rc.oid = t.typrelid
       left join pg_type b on b.oid = t.typbasetype
      where t.oid = any($1::oid[])
      order by n.nspname collate "C", t.typname collate "C"`,
    [types],
  )
  return rows
}

export type SequenceRow = {
  oid: number
  schema: string
  name: string
  type: string
  start: string
  increment: string
  min: string
  max: string
  cache: string
  cycle: boolean
  /** i: behind an identity column, a: owned by one, null: only used by a default. */
  owned: string | null
  table: number | null
  column: number | null
}
/** Sequences behind, owned by or used by the defaults of these tables' columns. */
export async function selectSequences(
  client: pg.ClientBase,
  tables: readonly number[],
): Promise<readonly SequenceRow[]> {
  const { rows } = await client.query<SequenceRow>(
    `with found as (
       select d.objid as oid, d.deptype::text as owned, d.refobjid as "table", d.refobjsubid as "column"
         from pg_depend d where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass
          and d.refobjid = any($1::oid[]) and d.refobjsubid > 0 and d.deptype in ('a', 'i')
       union all
       select d.refobjid, null, null, null
         from pg_attrdef f join pg_depend d on d.classid = 'pg_attrdef'::regclass and d.objid = f.oid and d.refclassid = 'pg_class'::regclass
        where f.adrelid = any($1::oid[]) and d.refobjid <> f.adrelid
     )
     select distinct on (c.oid) c.oid, n.nspname as schema, c.relname as name, format_type(s.seqtypid, null) as type,
            s.seqstart::text as start, s.seqincrement::text as increment, s.seqmin::text as min, s.seqmax::text as max,
            s.seqcache::text as cache, s.seqcycle as cycle, f.owned, f."table", f."column"
       from found f join pg_class c on c.oid = f.oid join pg_sequence s on s.seqrelid = c.oid join pg_namespace n on n.oid = c.relnamespace
      order by c.oid, f.owned nulls last`,
    [tables],
  )
  return rows
}

type CollationRow = { schema: string; name: string; options: string }
/** Collations of the database's own that these tables, their indexes and constraints, or these types need. */
export async function selectCollations(
  client: pg.ClientBase,
  tables: readonly number[],
  types: readonly number[],
): Promise<readonly CollationRow[]> {
  // The locale's column was renamed from version to version; before 15 it stood for ICU too in collcollate.
  const { rows } = await client.query<CollationRow>(
    `with own (class, oid) as (
       select 'pg_class'::regclass, t from unnest($1::oid[]) t
       union all select 'pg_class'::regclass, indexrelid from pg_index where indrelid = any($1)
       union all select 'pg_attrdef'::regclass, oid from pg_attrdef where adrelid = any($1)
       union all select 'pg_constraint'::regclass, oid from pg_constraint where conrelid = any($1) or contypid = any($2::oid[])
       union all select 'pg_type'::regclass, t from unnest($2::oid[]) t
       union all select 'pg_class'::regclass, typrelid from pg_type where oid = any($2) and typtype = 'c')
     select n.nspname as schema, c.collname as name,
            concat_ws(', ',
              'provider = ' || case c.collprovider when 'i' then 'icu' when 'b' then 'builtin' else 'libc' end,
              case when c.collprovider = 'c' then format('lc_collate = %L, lc_ctype = %L', c.collcollate, c.collctype)
                   else format('locale = %L', coalesce(j ->> 'colllocale', j ->> 'colliculocale', c.collcollate)) end,
              'rules = ' || quote_literal(j ->> 'collicurules'),
              case when not c.collisdeterministic then 'deterministic = false' end) as options
       from pg_collation c join pg_namespace n on n.oid = c.collnamespace cross join lateral to_jsonb(c) j
      where c.oid >= 16384
        and exists (select from pg_depend d join own on own.class = d.classid and own.oid = d.objid
                     where d.refclassid = 'pg_collation'::regclass and d.refobjid = c.oid)
        and not exists (select from pg_depend x where x.classid = 'pg_collation'::regclass and x.objid = c.oid and x.deptype = 'e')
      order by 1, 2`,
    [tables, types],
  )
  return rows
}

export type ColumnExtra = {
  table: number
  attnum: number
  collation: string | null
  missing: string | null
  /** NOT NULL holds for new rows only. */
  unproved: boolean
}
/** Collations other than the type's own, and what defaults and generated columns need. */
export async function selectColumnExtras(
  client: pg.ClientBase,
  tables: readonly number[],
): Promise<readonly ColumnExtra[]> {
  const { rows } = await client.query<ColumnExtra>(
    `select a.attrelid as "table", a.attnum,
            case when a.attcollation <> t.typcollation then format('%I.%I', cn.nspname, c.collname) end as collation,
            case when f.oid is not null then ${needs('pg_attrdef', 'f.oid')} end as missing,
            exists (select from pg_constraint k where k.conrelid = a.attrelid and k.contype = 'n' and not k.convalidated
                       and k.conkey = array[a.attnum]) as unproved
       from pg_attribute a join pg_type t on t.oid = a.atttypid
       left join pg_collation c on c.oid = a.attcollation left join pg_namespace cn on cn.oid = c.collnamespace
       left join pg_attrdef f on f.adrelid = a.attrelid and f.adnum = a.attnum
      where a.attrelid = any($1::oid[]) and a.attnum > 0 and not a.attisdropped`,
    [tables],
  )
  return rows
}

export type TableExtra = {
  oid: number
  options: string[] | null
  partitionKey: string | null
  bound: string | null
}
export async function selectTableExtras(
  client: pg.ClientBase,
  tables: readonly number[],
): Promise<readonly TableExtra[]> {
  const { rows } = await client.query<TableExtra>(
    `select c.oid, c.reloptions as options, case when c.relkind = 'p' then pg_get_partkeydef(c.oid) end as "partitionKey",
            pg_get_expr(c.relpartbound, c.oid) as bound
       from pg_class c where c.oid = any($1::oid[])`,
    [tables],
  )
  return rows
}

export type ConstraintRow = {
  table: number
  kind: string
  name: string
  def: string
  index: number
  local: boolean
  validated: boolean
  /** Also where it was made for the table itself first. */
  inherited: boolean
  target: number
  missing: string | null
}
/** Keys, unique, exclusion, check and foreign key constraints; not those that a partition has from its parent's foreign key. */
export async function selectConstraints(
  client: pg.ClientBase,
  tables: readonly number[],
): Promise<readonly ConstraintRow[]> {
  const { rows } = await client.query<ConstraintRow>(
    `select k.conrelid as "table", k.contype as kind, k.conname as name, pg_get_constraintdef(k.oid) as def, k.conindid as index,
            k.conislocal as local, k.convalidated as validated, k.coninhcount > 0 or k.conparentid <> 0 as inherited, k.confrelid as target,
            coalesce(${needs('pg_constraint', 'k.oid')}, case when k.contype <> 'f' then ${needs('pg_class', 'k.conindid')} end) as missing
       from pg_constraint k
      where k.conrelid = any($1::oid[]) and k.contype in ('p', 'u', 'x', 'c', 'f') and (k.contype <> 'f' or k.conparentid = 0)
      order by k.conname collate "C"`,
    [tables],
  )
  return rows
}

export type TableIndexRow = {
  table: number
  schema: string
  name: string
  def: string
  /** What of `def` does not name anything. */
  using: string
  unique: boolean
  valid: boolean
  /** The kind of the constraint that it stands for (p, u, x). */
  constraint: string | null
  deferrable: 'no' | 'immediate' | 'deferred'
  inherited: boolean
  partitioned: boolean
  identity: boolean
  missing: string | null
}
export async function selectIndexes(
  client: pg.ClientBase,
  tables: readonly number[],
): Promise<readonly TableIndexRow[]> {
  const { rows } = await client.query<TableIndexRow>(
    `select i.indrelid as "table", n.nspname as schema, c.relname as name, d.def,
            right(d.def, -length(format('CREATE %sINDEX %I ON %s%I.%I USING ', case when i.indisunique then 'UNIQUE ' end, c.relname,
                                        case when c.relkind = 'I' then 'ONLY ' end, tn.nspname, t.relname))) as using,
            i.indisunique as unique, i.indisvalid as valid, k.contype as constraint,
            case when k.condeferred then 'deferred' when k.condeferrable then 'immediate' else 'no' end as deferrable,
            exists (select from pg_inherits h where h.inhrelid = i.indexrelid) as inherited,
            c.relkind = 'I' as partitioned, i.indisreplident as identity, ${needs('pg_class', 'i.indexrelid')} as missing
       from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace
       join pg_class t on t.oid = i.indrelid join pg_namespace tn on tn.oid = t.relnamespace
       cross join lateral pg_get_indexdef(i.indexrelid) d (def)
       left join pg_constraint k on k.conindid = i.indexrelid and k.conrelid = i.indrelid and k.contype in ('p', 'u', 'x')
      where i.indrelid = any($1::oid[]) and i.indislive and d.def is not null
      order by c.relname collate "C"`,
    [tables],
  )
  return rows
}

/** Extensions whose types, functions or operators these tables' columns, defaults, constraints and indexes use. */
export async function selectExtensions(
  client: pg.ClientBase,
  tables: readonly number[],
  types: readonly number[],
): Promise<readonly string[]> {
  const { rows } = await client.query<{ name: string }>(
    `with objects (class, oid) as (
       select 'pg_class'::regclass, unnest($1::oid[])
       union select 'pg_attrdef'::regclass, oid from pg_attrdef where adrelid = any($1::oid[])
       union select 'pg_class'::regclass, indexrelid from pg_index where indrelid = any($1::oid[])
       union select 'pg_constraint'::regclass, oid from pg_constraint where conrelid = any($1::oid[])
     ), used (class, oid) as (
       select d.refclassid, d.refobjid from objects o join pg_depend d on d.classid = o.class and d.objid = o.oid
       union select 'pg_type'::regclass, unnest($2::oid[])
     )
     select distinct x.extname as name from used u
       join pg_depend e on e.classid = u.class and e.objid = u.oid and e.deptype = 'e'
       join pg_extension x on x.oid = e.refobjid order by 1`,
    [tables, types],
  )
  return rows.map((row) => row.name)
}

/** Everything in these schemas that only a dump would take along, as people call it. */
export async function selectNotCopied(
  client: pg.ClientBase,
  tables: readonly number[],
  schemas: readonly string[],
): Promise<readonly string[]> {
  const { rows } = await client.query<{ what: string }>(
    `with ours as (select n.oid from pg_namespace n where n.nspname = any($2::text[]))
     select 'view ' || c.oid::regclass as what from pg_class c where c.relkind = 'v' and c.relnamespace in (select oid from ours)
     union all select 'materialized view ' || c.oid::regclass from pg_class c where c.relkind = 'm' and c.relnamespace in (select oid from ours)
     union all select 'function ' || p.oid::regprocedure from pg_proc p where p.pronamespace in (select oid from ours)
        and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype in ('e', 'i'))
     union all select format('trigger %s on %s', t.tgname, t.tgrelid::regclass) from pg_trigger t where t.tgrelid = any($1::oid[]) and not t.tgisinternal
     union all select format('policy %s on %s', p.polname, p.polrelid::regclass) from pg_policy p where p.polrelid = any($1::oid[])
     union all select format('rule %s on %s', r.rulename, r.ev_class::regclass) from pg_rewrite r where r.ev_class = any($1::oid[])
     union all select 'statistics ' || s.stxname from pg_statistic_ext s where s.stxrelid = any($1::oid[])
     union all select 'grants on ' || c.oid::regclass from pg_class c where c.oid = any($1::oid[]) and c.relacl is not null
     union all select format('replica identity of %s', c.oid::regclass) from pg_class c where c.oid = any($1::oid[]) and c.relkind = 'r' and c.relreplident <> 'd'
     order by 1`,
    [tables, schemas],
  )
  return rows.map((row) => row.what)
}

/** Primary keys and the indexes that identify changes, as `<catalog> <oid>`, the way an archive's list names them. */
export async function selectKeyObjects(client: pg.ClientBase): Promise<readonly string[]> {
  const { rows } = await client.query<{ object: string }>(
    `select format('%s %s', 'pg_constraint'::regclass::oid, k.oid) as object
       from pg_constraint k left join pg_index i on i.indexrelid = k.conindid
      where k.contype = 'p' or (k.contype in ('u', 'x') and i.indisreplident)
     union all
     select format('%s %s', 'pg_class'::regclass::oid, i.indexrelid) from pg_index i where i.indisreplident`,
  )
  return rows.map((row) => row.object)
}

/** Names of indexes, constraints and triggers among these objects (`<catalog> <oid>`). */
export async function selectNames(
  client: pg.ClientBase,
  objects: readonly string[],
): Promise<readonly { kind: string; schema: string; table: string | null; name: string }[]> {
  const { rows } = await client.query<{ kind: string; schema: string; table: string | null; name: string }>(
    `with given as (select split_part(o, ' ', 1)::oid as class, split_part(o, ' ', 2)::oid as oid from unnest($1::text[]) o)
     select 'index' as kind, n.nspname as schema, null as "table", c.relname as name
       from given g join pg_class c on c.oid = g.oid join pg_namespace n on n.oid = c.relnamespace
      where g.class = 'pg_class'::regclass and c.relkind in ('i', 'I')
     union all
     select 'constraint', n.nspname, c.relname, k.conname
       from given g join pg_constraint k on k.oid = g.oid join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace
      where g.class = 'pg_constraint'::regclass
     union all
     select 'trigger', n.nspname, c.relname, t.tgname
       from given g join pg_trigger t on t.oid = g.oid join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
      where g.class = 'pg_trigger'::regclass`,
    [objects],
  )
  return rows
}

/** Rules of these tables, and triggers of theirs that act on replicated rows too, with their objects as above. */
export async function selectActing(
  client: pg.ClientBase,
  tables: readonly number[],
): Promise<readonly { object: string; what: string; comment: string }[]> {
  const { rows } = await client.query<{ object: string; what: string; comment: string }>(
    `with ours as (select unnest($1::oid[]) as oid union select a.relid::oid from unnest($1::oid[]) t (oid), pg_partition_ancestors(t.oid) a (relid)),
     found (class, oid, kind, name, relation) as (
       select 'pg_rewrite'::regclass::oid, r.oid, 'rule', r.rulename, r.ev_class from pg_rewrite r where r.rulename <> '_RETURN'
       union all
       select 'pg_trigger'::regclass::oid, t.oid, 'trigger', t.tgname, t.tgrelid from pg_trigger t
        where not t.tgisinternal and t.tgenabled in ('A', 'R'))
     select format('%s %s', class, f.oid) as object, format('%s %s of %s', kind, name, relation::regclass) as what,
            format('COMMENT %s %s %s ON %s ', n.nspname, upper(kind), quote_ident(name), quote_ident(c.relname)) as comment
       from found f join ours on ours.oid = relation join pg_class c on c.oid = relation join pg_namespace n on n.oid = c.relnamespace
      order by 2`,
    [tables],
  )
  return rows
}
