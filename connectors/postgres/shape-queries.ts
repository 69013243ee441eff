import type pg from 'pg'
import { collationFacts, qualified, serverVersion } from './queries.ts'

type TriggerRow = { table: number; name: string; def: string; enabled: string; inherited: boolean }
/** Triggers that people made, those that a partition has from its table too; `def` does not name the table. */
export async function selectTriggers(client: pg.ClientBase, tables: readonly number[]): Promise<readonly TriggerRow[]> {
  const { rows } = await client.query<TriggerRow>(
    `select t.tgrelid as "table", t.tgname as name,
            replace(pg_get_triggerdef(t.oid), format(' ON %I.%I ', n.nspname, c.relname), ' ') as def, t.tgenabled as enabled, t.tgparentid <> 0 as inherited
       from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
      where t.tgrelid = any($1::oid[]) and (not t.tgisinternal or t.tgparentid <> 0)
        and not exists (select from pg_constraint k where k.oid = t.tgconstraint and k.contype <> 't')
      order by t.tgname collate "C"`,
    [tables],
  )
  return rows
}

type RuleRow = { table: number; kind: 'rule' | 'policy'; name: string; def: string; enabled: string }
export async function selectRules(client: pg.ClientBase, tables: readonly number[]): Promise<readonly RuleRow[]> {
  const { rows } = await client.query<RuleRow>(
    `select r.ev_class as "table", 'rule' as kind, r.rulename as name, pg_get_ruledef(r.oid) as def, r.ev_enabled::text as enabled
       from pg_rewrite r where r.ev_class = any($1::oid[])
     union all
     select p.polrelid, 'policy', p.polname,
            concat_ws(' ', case when p.polpermissive then 'permissive' else 'restrictive' end, 'for',
                      case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end, 'to',
                      (select string_agg(coalesce(quote_ident(o.rolname), 'public'), ', ' order by o.rolname)
                         from unnest(p.polroles) r (oid) left join pg_roles o on o.oid = r.oid),
                      'using ' || pg_get_expr(p.polqual, p.polrelid), 'with check ' || pg_get_expr(p.polwithcheck, p.polrelid)), 'O'
       from pg_policy p where p.polrelid = any($1::oid[])
     order by 2, 3`,
    [tables],
  )
  return rows
}

type CollationRow = {
  name: string
  locale: string
  deterministic: boolean
  version: string | null
  /** Of the database; the default collation has it alone. */
  encoding: string | null
}
/** Collations of these tables' columns and indexes, and the database's own under the name `default`. */
export async function selectCollationsUsed(
  client: pg.ClientBase,
  tables: readonly number[],
): Promise<readonly CollationRow[]> {
  const { provider, version } = collationFacts(await serverVersion(client))
  const { rows } = await client.query<CollationRow>(
    `with used (oid) as (
       select 100::oid union select attcollation from pg_attribute where attrelid = any($1::oid[]) and attnum > 0 and not attisdropped
       union select unnest(indcollation::oid[]) from pg_index where indrelid = any($1::oid[]))
     select case when c.oid = 100 then 'default' else format('%I.%I', n.nspname, c.collname) end as name,
            concat_ws(' ', case ${provider} when 'i' then 'icu' when 'b' then 'builtin' else 'libc' end,
              case when c.oid <> 100 then
                     case when c.collprovider = 'c' then concat_ws(' ', c.collcollate, nullif(c.collctype, c.collcollate))
                          else coalesce(j ->> 'colllocale', j ->> 'colliculocale', c.collcollate) end
                   when ${provider} = 'c' then concat_ws(' ', d.datcollate, nullif(d.datctype, d.datcollate))
                   else coalesce(dj ->> 'datlocale', dj ->> 'daticulocale') end,
              coalesce(case when c.oid = 100 then dj ->> 'daticurules' end, j ->> 'collicurules')) as locale,
            c.collisdeterministic as deterministic, ${version} as version,
            case when c.oid = 100 then pg_encoding_to_char(d.encoding) end as encoding
       from used join pg_collation c on c.oid = used.oid join pg_namespace n on n.oid = c.collnamespace
       join pg_database d on d.datname = current_database() cross join lateral to_jsonb(c) j cross join lateral to_jsonb(d) dj
      order by 1`,
    [tables],
  )
  return rows
}

/** Of each partitioned table its partitions, also such as no pipeline has. */
export async function selectPartitions(
  client: pg.ClientBase,
  tables: readonly number[],
): Promise<readonly { parent: number; schema: string; name: string; bound: string }[]> {
  const { rows } = await client.query<{ parent: number; schema: string; name: string; bound: string }>(
    `select i.inhparent as parent, n.nspname as schema, c.relname as name, coalesce(pg_get_expr(c.relpartbound, c.oid), '') as bound
       from pg_inherits i join pg_class c on c.oid = i.inhrelid join pg_namespace n on n.oid = c.relnamespace
      where i.inhparent = any($1::oid[])
      order by n.nspname collate "C", c.relname collate "C"`,
    [tables],
  )
  return rows
}

export async function selectExtensionVersions(
  client: pg.ClientBase,
  names: readonly string[],
): Promise<readonly { name: string; version: string }[]> {
  const { rows } = await client.query<{ name: string; version: string }>(
    `select extname as name, extversion as version from pg_extension where extname = any($1::text[]) order by 1`,
    [names],
  )
  return rows
}

/** Sequences asked in one statement. */
const sequencesAtOnce = 100

/** The next value of each of these sequences, in their order. */
export async function selectNextValues(
  client: pg.ClientBase,
  sequences: readonly { readonly schema: string; readonly name: string; readonly increment: string }[],
): Promise<readonly bigint[]> {
  const found: bigint[] = []
  for (let from = 0; from < sequences.length; from += sequencesAtOnce) {
    const some = sequences.slice(from, from + sequencesAtOnce)
    const asked = some.map((sequence, i) => `select ${i} as i, last_value, is_called from ${qualified(sequence)}`)
    const { rows } = await client.query<{ last_value: string; is_called: boolean }>(
      `${asked.join(' union all ')} order by 1`,
    )
    rows.forEach(({ last_value: last, is_called: called }, i) => {
      found.push(BigInt(last) + (called ? BigInt(some[i]?.increment ?? 1) : 0n))
    })
  }
  return found
}
