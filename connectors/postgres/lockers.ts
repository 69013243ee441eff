import type pg from 'pg'
import { Failure } from '../../src/errors.ts'
import { mapError, sqlState } from './errors.ts'
import { literal } from './queries.ts'

/** Milliseconds that a look at the tables of a server waits for whoever has locked one for itself alone. */
export const lookLimitMs = 10_000

/** Whoever looks, under a lock_timeout, and waits too long for a table is told who has locked it: SERVER_BUSY. Other errors are mapped. */
export async function namingLockers<T>(client: pg.ClientBase, look: () => Promise<T>): Promise<T> {
  try {
    return await look()
  } catch (error) {
    throw (isLockTimeout(error) ? await lockedBy(client) : undefined) ?? mapError(error)
  }
}

/** The server's own error, or ours that was made of it. */
export function isLockTimeout(error: unknown): boolean {
  if (!(error instanceof Failure)) return sqlState(error) === '55P03'
  return error.code === 'SERVER_BUSY' && error.facts.observed?.includes('SQLSTATE 55P03') === true
}

/** Undefined where nobody has any more. */
async function lockedBy(client: pg.ClientBase): Promise<Failure | undefined> {
  const lockers = await selectLockers(client)
  if (lockers.length === 0) return undefined
  return new Failure('SERVER_BUSY', {
    object: [...new Set(lockers.map(({ table }) => table))].join(', '),
    observed: lockers
      .map(({ table, pid, gid, who, state, seconds }) =>
        pid === null
          ? `prepared transaction ${gid} has locked ${table}`
          : `process ${pid} (${who}, ${state} for ${seconds} s) has locked ${table}, or waits to`,
      )
      .join('; '),
    needed: 'tables that others may look at',
    next: lockers
      .map(({ pid, gid }) =>
        pid === null
          ? `ROLLBACK PREPARED ${literal(gid ?? '')}; -- or COMMIT PREPARED`
          : `SELECT pg_terminate_backend(${pid}); -- if its end is not to be waited for`,
      )
      .join('\n'),
  })
}

type LockerRow = {
  readonly table: string
  /** Null: a prepared transaction. */
  readonly pid: number | null
  readonly gid: string | null
  readonly who: string
  readonly state: string
  readonly seconds: number
}
/** Sessions that have a table of this database for themselves alone, those that wait for it, which others queue behind, and what these wait for. */
async function selectLockers(client: pg.ClientBase): Promise<readonly LockerRow[]> {
  const { rows } = await client.query<LockerRow>(`
    with alone as (
      select l.pid, l.relation, l.granted, l.virtualtransaction
        from pg_locks l join pg_database d on d.oid = l.database and d.datname = current_database()
       where l.locktype = 'relation' and l.mode = 'AccessExclusiveLock' and l.relation >= 16384 and l.pid is distinct from pg_backend_pid()
    ), lockers as (
      select pid, relation, virtualtransaction from alone
      union select b.pid, relation, '' from alone, unnest(pg_blocking_pids(alone.pid)) b (pid) where not granted and b.pid > 0
    )
    select l.relation::regclass::text as table, l.pid, p.gid,
           format('%s as %s', coalesce(nullif(a.application_name, ''), 'unnamed'), a.usename) as who,
           coalesce(a.state, 'state unknown') as state,
           coalesce(extract(epoch from now() - coalesce(a.xact_start, a.state_change)), 0)::int as seconds
      from lockers l left join pg_stat_activity a on a.pid = l.pid
      left join pg_prepared_xacts p on l.pid is null and p.transaction::text = split_part(l.virtualtransaction, '/', 2)
     where a.pid is not null or p.gid is not null
     order by a.xact_start nulls first, 1 limit 5`)
  return rows
}
