import type pg from 'pg'
import { parseLsn } from './position.ts'
import type { Transactions } from './source-queries.ts'

/** A place in the log, when it was read by the server's clock, and the transactions whose commits may stand before it and be visible to nobody yet. */
export type Unseen = { readonly lsn: bigint; readonly at: string; readonly open: ReadonlySet<number> }

/** Of those that have an id, as everybody may ask. A session shows its own from before its first record until its changes are visible; who prepares is
 *  listed there before his session forgets it. (A snapshot does not list those that are younger than all that have ended.) */
const inProgress = `select backend_xid::text as xid from pg_stat_activity where backend_xid is not null
  union all select transaction::text from pg_prepared_xacts`

/** A commit stands in the log, and is sent to whoever follows it, before a new snapshot sees it: for as long as it waits for a standby (H20). The log is
 *  asked first, so a commit that stands before the place is visible, or its transaction is among those in progress. */
export async function selectUnseen(client: pg.ClientBase): Promise<Unseen> {
  const place = await client.query<{ lsn: string }>('select pg_current_wal_insert_lsn()::text as lsn')
  const { rows } = await client.query<{ xid: string }>(inProgress)
  const clock = await client.query<{ at: string }>('select clock_timestamp()::text as at')
  return { lsn: parseLsn(place.rows[0]?.lsn ?? ''), at: clock.rows[0]?.at ?? '', open: ids(rows) }
}

/** Those that may still not be visible. A session that has been idle since, or works at a statement that began since, had not committed; nor had a
 *  prepared transaction if nobody works at anything older. */
export async function selectStillUnseen(client: pg.ClientBase, { lsn, at, open }: Unseen): Promise<Unseen> {
  const still = ids((await client.query<{ xid: string }>(inProgress)).rows)
  const left = new Set([...open].filter((xid) => still.has(xid)))
  if (left.size === 0) return { lsn, at, open: left }
  const { rows } = await client.query<{ xid: string }>(
    `select backend_xid::text as xid from pg_stat_activity
      where backend_xid is not null and (state like 'idle in transaction%' or (state = 'active' and query_start > $1::timestamptz))
     union all
     select transaction::text from pg_prepared_xacts
      where not exists (select from pg_stat_activity
                         where coalesce(backend_type, 'client backend') ~ 'client backend|worker' and pid <> pg_backend_pid()
                           and coalesce(state, 'hidden') !~ '^idle' and coalesce(query_start, '-infinity') <= $1::timestamptz)`,
    [at],
  )
  for (const xid of ids(rows)) left.delete(xid)
  return { lsn, at, open: left }
}

function ids(rows: readonly { readonly xid: string }[]): Set<number> {
  return new Set(rows.map(({ xid }) => Number(xid)))
}

/** Ids have 32 bits and go round: later means less than half of them ahead. */
export function isOpen(xid: number, { next, inProgress }: Transactions): boolean {
  return inProgress.has(xid) || ((xid - next) | 0) >= 0
}
