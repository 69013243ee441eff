import type pg from 'pg'

/** A slot that was made by hand, and where the log ends. */
export async function selectStartSlot(
  client: pg.ClientBase,
  slot: string,
): Promise<{ temporary: boolean; two_phase: boolean; confirmed: string | null; end: string } | undefined> {
  const { rows } = await client.query<{
    temporary: boolean
    two_phase: boolean
    confirmed: string | null
    end: string
  }>(
    `select temporary, two_phase, confirmed_flush_lsn as confirmed, pg_current_wal_insert_lsn() as end
       from pg_replication_slots where slot_name = $1`,
    [slot],
  )
  return rows[0]
}

/** The transactions that made the publication, or changed it, and are not older than any that the slot of its name decodes. */
export async function selectMakersInDoubt(client: pg.ClientBase, name: string): Promise<readonly string[]> {
  const { rows } = await client.query<{ xid: string }>(
    `select distinct made.xmin::text as xid
       from pg_replication_slots s, pg_publication p,
            lateral (select p.xmin union all select r.xmin from pg_publication_rel r where r.prpubid = p.oid) made
      where s.slot_name = $1 and p.pubname = $1 and age(made.xmin) <= age(s.catalog_xmin)`,
    [name],
  )
  return rows.map(({ xid }) => xid)
}

/** Tables of the publication whose columns or key were defined by transactions that are not older than any that the slot of its name decodes: each
 *  with them. A number from the future is that of a row frozen long ago. */
export async function selectDefinersInDoubt(
  client: pg.ClientBase,
  name: string,
): Promise<readonly { readonly schema: string; readonly name: string; readonly xids: readonly string[] }[]> {
  const { rows } = await client.query<{ schema: string; name: string; xids: string[] }>(
    `select n.nspname as schema, c.relname as name, array_agg(distinct made.xmin::text) as xids
       from pg_replication_slots s, pg_publication p
       join pg_publication_rel r on r.prpubid = p.oid
       join pg_class c on c.oid = r.prrelid and c.relkind = 'r' join pg_namespace n on n.oid = c.relnamespace,
            lateral (select a.xmin from pg_attribute a where a.attrelid = c.oid and a.attnum > 0
                     union all
                     select i.xmin from pg_index i where i.indrelid = c.oid and (i.indisprimary or i.indisreplident)) made
      where s.slot_name = $1 and p.pubname = $1 and age(made.xmin) between 0 and age(s.catalog_xmin)
      group by 1, 2 order by 1, 2`,
    [name],
  )
  return rows
}

/** A temporary copy of a slot, whose reader shows transactions that changed the catalog alone. */
export async function copySlot(client: pg.ClientBase, slot: string): Promise<string> {
  const { rows } = await client.query<{ name: string }>(
    `select slot_name as name
       from pg_copy_logical_replication_slot($1, 'crossfade_look_' || pg_backend_pid(), true, 'test_decoding')`,
    [slot],
  )
  return rows[0]?.name ?? ''
}

/** What commits within a piece of the log, as to some transactions. `commit`: where one of them did. `earlier`: where the last with a number before its
 *  own did, of which it may be a part. `over`: the log has no more, or none of them can come any more. */
type Piece = {
  readonly found: readonly { readonly xid: string; readonly commit: string | null; readonly earlier: string | null }[]
  readonly over: boolean
}

/**
 * Takes the next `bytes` of the log from the slot, within `limitMs`. No output plugin that comes with the server leaves rows out. So a transaction of more
 * than 64 kB is taken as a stream of changes that are only counted, in some 80 bytes each: without it the server would write all of it out as text.
 */
export async function takeCommits(
  client: pg.ClientBase,
  slot: string,
  xids: readonly string[],
  { bytes, limitMs }: { readonly bytes: number; readonly limitMs: number },
): Promise<Piece> {
  await client.query(`begin; set local statement_timeout = ${limitMs}; set local logical_decoding_work_mem = '64kB'`)
  try {
    const { rows: found } = await client.query<Piece['found'][number]>(
      `with c as materialized (
         select c.xid, c.lsn
           from pg_replication_slots s,
                lateral pg_logical_slot_get_changes(s.slot_name, s.confirmed_flush_lsn + $3::numeric, null,
                                                    'skip-empty-xacts', '0', 'stream-changes', '1') c
          where s.slot_name = $1 and (c.data like 'COMMIT %' or c.data like 'committing streamed transaction%'))
       select x as xid, max(c.lsn) filter (where c.xid = x::xid) as commit,
              max(c.lsn) filter (where age(c.xid) > age(x::xid)) as earlier
         from c cross join unnest($2::text[]) x group by x`,
      [slot, xids, bytes],
    )
    const { rows: state } = await client.query<{ over: boolean }>(
      `select s.confirmed_flush_lsn >= pg_current_wal_flush_lsn()
              or (select bool_and(age(x::xid) > age(s.catalog_xmin)) from unnest($2::text[]) x) as over
         from pg_replication_slots s where s.slot_name = $1`,
      [slot, xids],
    )
    return { found, over: state[0]?.over !== false }
  } finally {
    await client.query('rollback')
  }
}
