import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { Failure } from '../../src/errors.ts'
import { heartbeatPrefix } from '../../src/model.ts'
import { ask } from './answer.ts'
import { parseLsn } from './position.ts'
import { emitMessage, selectUncommitted, type Session, type Transactions, type Uncommitted } from './source-queries.ts'

/** Between the flush of its commit and being visible a transaction only marks itself as ended; unless it waits for a standby, which shows. */
const graceMs = 2_000
/** Until the log's end is made to be flushed, which nobody may have wanted. */
const patienceMs = 500

/** Transactions that have an id, as everybody may ask. A session shows its own from before its first record until its changes are visible; who prepares is
 *  listed there before his session forgets it. (A snapshot does not list those that are younger than all that have ended.) */
async function selectIds(client: pg.ClientBase): Promise<ReadonlySet<number>> {
  const { rows } = await client.query<{ xid: string }>(
    `select backend_xid::text as xid from pg_stat_activity where backend_xid is not null
     union all select transaction::text from pg_prepared_xacts`,
  )
  return new Set(rows.map(({ xid }) => Number(xid)))
}

/** Resolves to a place in the log, as of the call, once every commit before it is visible. A commit stands in the log, and is sent to whoever follows it,
 *  before a new snapshot sees it: for as long as it waits for a standby (H20). The log is asked first, so a commit that stands before the place is
 *  visible, or its transaction is among those in progress. Of these are waited for only those of which nothing tells that they have not committed.
 *  Aborted meanwhile, rejects with SERVER_BUSY or NO_RIGHTS, which say whom it waited for, where that is known. */
export async function waitUntilVisible(client: pg.ClientBase, signal: AbortSignal): Promise<bigint> {
  const { rows } = await ask(client.query<{ lsn: string }>('select pg_current_wal_insert_lsn()::text as lsn'), signal)
  const lsn = parseLsn(rows[0]?.lsn ?? '')
  let open = await ask(selectIds(client), signal)
  const clock = await ask(client.query<{ at: string }>('select clock_timestamp()::text as at'), signal)
  const at = clock.rows[0]?.at ?? ''
  const began = performance.now()
  let pushed = false
  let flushed: number | undefined
  let why: Failure | undefined
  for (let ms = 5; open.size > 0; ms = Math.min(2 * ms, 100)) {
    await sleep(ms, undefined, { signal }).catch((error: unknown) => {
      throw why ?? error
    })
    if (!pushed && performance.now() > began + patienceMs) {
      pushed = true
      await ask(emitMessage(client, heartbeatPrefix, new Uint8Array()), signal)
    }
    const now = await ask(selectIds(client), signal)
    const left = new Set([...open].filter((xid) => now.has(xid)))
    open = left
    if (left.size === 0) break
    const seen = await ask(selectUncommitted(client, at), signal)
    if (parseLsn(seen.flushed) >= lsn) flushed ??= performance.now()
    const late = flushed !== undefined && performance.now() > flushed + graceMs
    why = exclude(left, seen, late)
  }
  return lsn
}

/** Takes out of `open` whatever has not committed. `late`: whoever has, shows that it waits for a standby. Returns what keeps the others. */
function exclude(open: Set<number>, { sessions, prepared, standbys }: Uncommitted, late: boolean): Failure | undefined {
  let why: Failure | undefined
  const may = ({ pid, waits, hidden, elsewhere, before }: Session): boolean => {
    if (elsewhere || before) return false
    if (!late) return true
    if (waits) why ??= new Failure('SERVER_BUSY', { observed: `process ${pid} has committed and waits for a standby` })
    else if (hidden && standbys !== '')
      why ??= new Failure('NO_RIGHTS', {
        observed: `whether process ${pid} has committed, and waits for a standby, is hidden from a role without pg_read_all_stats`,
        next: 'grant pg_read_all_stats to the role of the source’s url',
      })
    else return false
    return true
  }
  for (const session of sessions)
    if (session.xid !== null && open.has(Number(session.xid)) && !may(session)) open.delete(Number(session.xid))
  // Whoever commits what was prepared has no number of its own.
  const committing = sessions.filter(({ xid }) => xid === null)
  for (const { xid, elsewhere } of prepared)
    if (open.has(Number(xid)) && (elsewhere || !committing.some(may))) open.delete(Number(xid))
  return why
}

/** Ids have 32 bits and go round: later means less than half of them ahead. */
export function isOpen(xid: number, { next, inProgress }: Transactions): boolean {
  return inProgress.has(xid) || ((xid - next) | 0) >= 0
}
