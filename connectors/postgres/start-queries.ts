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

/** A temporary copy of a slot, whose reader shows transactions that changed the catalog alone. */
export async function copySlot(client: pg.ClientBase, slot: string): Promise<string> {
  const { rows } = await client.query<{ name: string }>(
    `select slot_name as name
       from pg_copy_logical_replication_slot($1, 'crossfade_look_' || pg_backend_pid(), true, 'test_decoding')`,
    [slot],
  )
  return rows[0]?.name ?? ''
}

/** What commits within a piece of the log, as to some transactions. `last`: where the last of them did. `earlier`: one with a number before theirs did, so
 *  that they may be parts of it. `over`: the log has no more, or none of them can come any more. */
type Piece = { readonly last: string | null; readonly earlier: boolean | null; readonly over: boolean }

/** Takes the next `bytes` of the log from the slot. */
export async function takeCommits(
  client: pg.ClientBase,
  slot: string,
  xids: readonly string[],
  bytes: number,
): Promise<Piece> {
  const { rows } = await client.query<Omit<Piece, 'over'>>(
    `select max(c.lsn) filter (where c.xid::text = any($2)) as last,
            bool_or((select bool_or(age(c.xid) > age(x::xid)) from unnest($2::text[]) x)) as earlier
       from pg_replication_slots s,
            lateral pg_logical_slot_get_changes(s.slot_name, s.confirmed_flush_lsn + $3::numeric, null, 'skip-empty-xacts', '0') c
      where s.slot_name = $1 and c.data like 'COMMIT %'`,
    [slot, xids, bytes],
  )
  const { rows: state } = await client.query<{ over: boolean }>(
    `select s.confirmed_flush_lsn >= pg_current_wal_flush_lsn()
            or (select bool_and(age(x::xid) > age(s.catalog_xmin)) from unnest($2::text[]) x) as over
       from pg_replication_slots s where s.slot_name = $1`,
    [slot, xids],
  )
  return { last: rows[0]?.last ?? null, earlier: rows[0]?.earlier ?? false, over: state[0]?.over !== false }
}
