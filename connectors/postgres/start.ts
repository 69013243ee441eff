import type pg from 'pg'
import type { Finding } from '../../src/connector.ts'
import type { TableId } from '../../src/model.ts'
import { parseLsn } from './position.ts'
import { ident, literal, qualified } from './queries.ts'
import { serves, withRoots } from './retained.ts'
import { selectMadeBefore, selectPublication, selectRoots, selectStartSlot } from './source-queries.ts'

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
  // H9: what was published later than the slot began is missing without a word. Another slot, or a transaction open when this one was made, can hide it.
  if (!(await selectMadeBefore(client, name)))
    return [
      {
        id: 'source.start',
        level: 'unknown',
        observed: `whether publication ${name} is older than slot ${name} cannot be seen`,
        needed: 'a publication made, and left as it is, before the slot',
        remedy: `-- where it may be younger:\n${again}`,
      },
    ]
  const observed = `slot ${name} keeps changes from ${slot.confirmed} on`
  return [{ id: 'source.start', level: 'ok', observed, needed: `from ${startAt} on` }]
}

function placeOf(text: string): bigint | undefined {
  try {
    return parseLsn(text)
  } catch {
    return undefined
  }
}
