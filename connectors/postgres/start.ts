import type pg from 'pg'
import type { Finding } from '../../src/connector.ts'
import type { TableId } from '../../src/model.ts'
import { parseLsn, printLsn } from './position.ts'
import { ident, literal, qualified } from './queries.ts'
import { serves, withRoots } from './retained.ts'
import { dropSlot, selectPublication, selectRoots } from './source-queries.ts'
import { copySlot, selectMakersInDoubt, selectStartSlot, takeCommits } from './start-queries.ts'

/** Bytes of the source's log, at most and at once, that are looked through for the publication. An older one shows at the first record of running
 *  transactions, at most 15 s of work behind the slot's beginning. */
const mostRead = 512 * 2 ** 20
const atOnce = 16 * 2 ** 20

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
  // H9: what was published later than the slot began is missing without a word.
  const doubted = await selectMakersInDoubt(client, name)
  if (doubted.length > 0) {
    const needed = 'a publication made, and left as it is, before the slot'
    const made = await whenMade(client, name, doubted)
    if (made.last !== undefined && made.last > wanted)
      return blocker(
        `publication ${name} was made or altered at ${printLsn(made.last)}: what was written between ${startAt} and there is missing from slot ${name}`,
        needed,
        again,
      )
    const [level, observed] = made.before
      ? ([
          'warning',
          `publication ${name} was there when slot ${name} began at ${slot.confirmed}; that it was not made while the slot was being made cannot be seen`,
        ] as const)
      : ([
          'unknown',
          made.last === undefined
            ? `whether publication ${name} is older than slot ${name} cannot be seen`
            : `publication ${name} was made or altered at ${printLsn(made.last)}, after slot ${name}: what a transaction open then wrote before may be missing`,
        ] as const)
    return [{ id: 'source.start', level, observed, needed, remedy: `-- where it may be younger:\n${again}` }]
  }
  const observed = `slot ${name} keeps changes from ${slot.confirmed} on`
  return [{ id: 'source.start', level: 'ok', observed, needed: `from ${startAt} on` }]
}

/** `last`: where the last of these transactions committed, of those found in the log from the slot's beginning on. `before`: all of it was read that could
 *  hold one, and none is in it, so they committed before. Neither where it cannot be read: without a free slot, without the plugin, or too far on. */
async function whenMade(
  client: pg.Client,
  name: string,
  xids: readonly string[],
): Promise<{ readonly last: bigint | undefined; readonly before: boolean }> {
  let last: bigint | undefined
  let sure = true
  const copy = await copySlot(client, name).catch(() => undefined)
  if (copy === undefined) return { last, before: false }
  try {
    for (let read = 0; read < mostRead; read += atOnce) {
      const piece = await takeCommits(client, copy, xids, atOnce)
      if (piece.last !== null) last = parseLsn(piece.last)
      sure &&= piece.earlier !== true
      if (piece.over) return { last, before: sure && last === undefined }
    }
  } catch {
    // What was found is so all the same.
  } finally {
    await dropSlot(client, copy).catch(() => {})
  }
  return { last, before: false }
}

function placeOf(text: string): bigint | undefined {
  try {
    return parseLsn(text)
  } catch {
    return undefined
  }
}
