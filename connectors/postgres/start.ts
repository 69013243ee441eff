import type pg from 'pg'
import type { Finding } from '../../src/connector.ts'
import { tableName, type TableId } from '../../src/model.ts'
import { parseLsn, printLsn } from './position.ts'
import { ident, literal, qualified } from './queries.ts'
import { serves, withRoots } from './retained.ts'
import { dropSlot, selectPublication, selectRoots } from './source-queries.ts'
import { copySlot, selectDefinersInDoubt, selectMakersInDoubt, selectStartSlot, takeCommits } from './start-queries.ts'

/** Bytes of the source's log that are looked through at most, and at first. What is older than the slot shows at the first record of running
 *  transactions, at most 15 s of work behind the slot's beginning. Each piece is twice the one before: the server reads again what is before a piece as
 *  long as a transaction is open there. */
const mostRead = 512 * 2 ** 20
const firstRead = 16 * 2 ** 20
/** All of it together. */
const mostMs = 60_000

/** Whether what the operator made by hand, a slot and before it a publication, both called `name`, keeps every change of these tables from `startAt` on;
 *  `startAt` as the server prints a place in its log. */
export async function checkStart(
  client: pg.Client,
  name: string,
  tables: readonly TableId[],
  startAt: string,
  serverVersion: number,
): Promise<readonly Finding[]> {
  const blocker = (observed: string, needed: string, remedy: string): readonly Finding[] => [
    { id: 'source.start', level: 'blocker', observed, needed, remedy },
  ]
  const wanted = placeOf(startAt)
  if (wanted === undefined)
    return blocker(`startAt: ${startAt}`, 'a place in the source’s log', 'Write it as in startAt: "16/B374D848"')
  const roots = await selectRoots(client, tables)
  const published = withRoots(tables, roots)
  const list = published.map((table) => `ONLY ${qualified(table)}`).join(', ')
  const create = [
    `CREATE PUBLICATION ${ident(name)} FOR TABLE ${list};`,
    `SELECT lsn FROM pg_create_logical_replication_slot(${literal(name)}, 'pgoutput'); -- startAt, for a target that holds all up to there and nothing after it`,
  ]
  const drop = `SELECT pg_drop_replication_slot(${literal(name)});`
  const slot = await selectStartSlot(client, name)
  if (slot === undefined)
    return blocker(`there is no slot ${name}`, `one that keeps the changes from ${startAt} on`, create.join('\n'))
  // The database and the plugin, whether it is lost or read by others: the check of the slot, which stands beside this one, says it.
  const kind = slot.temporary ? 'temporary' : slot.two_phase ? 'one of two-phase commit' : undefined
  if (kind !== undefined)
    return blocker(`slot ${name} is ${kind}`, 'a permanent one without two_phase', [drop, ...create].join('\n'))
  const confirmed = slot.confirmed === null ? undefined : parseLsn(slot.confirmed)
  if (confirmed === undefined || wanted < confirmed)
    return blocker(
      `slot ${name} keeps changes from ${slot.confirmed ?? 'nowhere'} on only`,
      `from ${startAt} on`,
      `startAt: "${slot.confirmed ?? ''}" -- if the target holds all up to there; else a new slot and new data`,
    )
  if (wanted > parseLsn(slot.end))
    return blocker(
      `the source’s log ends at ${slot.end}`,
      `at least ${startAt}`,
      `Correct startAt, between ${slot.confirmed} and ${slot.end}`,
    )
  const publication = await selectPublication(client, name, serverVersion)
  const again = [drop, ...(publication === undefined ? [] : [`DROP PUBLICATION ${ident(name)};`]), ...create].join('\n')
  if (publication === undefined || !serves(publication, tables, published))
    return blocker(
      publication === undefined ? `there is no publication ${name}` : `publication ${name} is another one`,
      'these tables, whole, and every kind of change, from before the slot was made',
      again,
    )
  const made = await selectMakersInDoubt(client, name)
  const defined = await selectDefinersInDoubt(client, name)
  const log = await readLog(client, name, [...new Set([...made, ...defined.flatMap(({ xids }) => xids)])])
  const found = [
    ...publicationDoubt(name, made, log, { startAt, wanted, confirmed: slot.confirmed ?? '', again }),
    ...defined.flatMap((table) => definitionDoubt(table, log, { startAt, wanted, name, again })),
  ]
  if (found.length > 0) return found.toSorted((a, b) => Number(b.level === 'blocker') - Number(a.level === 'blocker'))
  const observed = `slot ${name} keeps changes from ${slot.confirmed} on`
  return [{ id: 'source.start', level: 'ok', observed, needed: `from ${startAt} on` }]
}

/** H9: what was published later than the slot began is missing without a word. */
function publicationDoubt(
  name: string,
  xids: readonly string[],
  log: Log,
  start: { readonly startAt: string; readonly wanted: bigint; readonly confirmed: string; readonly again: string },
): readonly Finding[] {
  if (xids.length === 0) return []
  const needed = 'a publication made, and left as it is, before the slot'
  const last = lastOf(xids, log.commits)
  const { startAt, wanted, confirmed, again } = start
  if (last !== undefined && last > wanted)
    return [
      {
        id: 'source.start',
        level: 'blocker',
        observed: `publication ${name} was made or altered at ${printLsn(last)}: what was written between ${startAt} and there is missing from slot ${name}`,
        needed,
        remedy: again,
      },
    ]
  const [level, observed] =
    log.whole && last === undefined && lastDoubt(xids, log) === undefined
      ? ([
          'warning',
          `publication ${name} was there when slot ${name} began at ${confirmed}; that it was not made while the slot was being made cannot be seen`,
        ] as const)
      : ([
          'unknown',
          last === undefined
            ? `whether publication ${name} is older than slot ${name} cannot be seen`
            : `publication ${name} was made or altered at ${printLsn(last)}, after slot ${name}: what a transaction open then wrote before may be missing`,
        ] as const)
  return [{ id: 'source.start', level, observed, needed, remedy: `-- where it may be younger:\n${again}` }]
}

/** H26: rows are taken to be of the table as it is now, so it must be since `startAt`. Whoever changes it waits for all who wrote to it: no row from before
 *  commits behind the change. */
function definitionDoubt(
  { xids, ...table }: TableId & { readonly xids: readonly string[] },
  log: Log,
  start: { readonly startAt: string; readonly wanted: bigint; readonly name: string; readonly again: string },
): readonly Finding[] {
  const last = lastOf(xids, log.commits)
  const { startAt, wanted, name, again } = start
  const needed = `the definition that it has now, since ${startAt}`
  const [id, of] = ['source.start_definition', tableName(table)]
  const fresh = `a new slot and new data:\n${again}`
  if (last !== undefined && last > wanted) {
    const observed = `columns or key of ${of} were altered at ${printLsn(last)}: rows before are of another definition than it has now`
    const remedy = `A startAt behind that place, if the target holds all up to it; else ${fresh}`
    return [{ id, level: 'blocker', observed, needed, remedy }]
  }
  const doubt = lastDoubt(xids, log)
  if (log.whole && (doubt === undefined || doubt <= wanted)) return []
  const observed = `whether columns and key of ${of} were altered since slot ${name} began cannot be seen`
  return [{ id, level: 'unknown', observed, needed, remedy: `-- where they may have been, ${fresh}` }]
}

/** What the log says of some transactions, from the slot's beginning on. `commits`: where those found in it did. `earlier`: where the last with a number
 *  before theirs did, of which they may be parts. `whole`: all of it was read that could hold one; not without a free slot, without the plugin, or where it
 *  is too much. */
type Log = {
  readonly commits: ReadonlyMap<string, bigint>
  readonly earlier: ReadonlyMap<string, bigint>
  readonly whole: boolean
}

function lastOf(xids: readonly string[], places: ReadonlyMap<string, bigint>): bigint | undefined {
  return xids
    .flatMap((xid) => places.get(xid) ?? [])
    .toSorted((a, b) => (a < b ? -1 : 1))
    .at(-1)
}

/** Of those that are not found, the last place at which they may have committed all the same. */
function lastDoubt(xids: readonly string[], { commits, earlier }: Log): bigint | undefined {
  return lastOf(
    xids.filter((xid) => !commits.has(xid)),
    earlier,
  )
}

async function readLog(client: pg.Client, name: string, xids: readonly string[]): Promise<Log> {
  const commits = new Map<string, bigint>()
  const earlier = new Map<string, bigint>()
  if (xids.length === 0) return { commits, earlier, whole: true }
  const copy = await copySlot(client, name).catch(() => undefined)
  if (copy === undefined) return { commits, earlier, whole: false }
  const deadline = performance.now() + mostMs
  let whole = false
  try {
    for (
      let [left, bytes] = [mostRead, firstRead];
      left > 0 && !whole;
      left -= bytes, bytes = Math.min(2 * bytes, left)
    ) {
      const limitMs = Math.ceil(deadline - performance.now())
      if (limitMs <= 0) break
      const piece = await takeCommits(client, copy, xids, { bytes, limitMs })
      for (const { xid, commit, earlier: before } of piece.found) {
        if (commit !== null) commits.set(xid, parseLsn(commit))
        if (before !== null) earlier.set(xid, parseLsn(before))
      }
      whole = piece.over
    }
  } catch {
    // What was found is so all the same.
  } finally {
    await dropSlot(client, copy).catch(() => {})
  }
  return { commits, earlier, whole }
}

function placeOf(text: string): bigint | undefined {
  try {
    return parseLsn(text)
  } catch {
    return undefined
  }
}
