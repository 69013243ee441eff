import type pg from 'pg'
import { Failure } from '../../src/errors.ts'
import { origin, type Position } from '../../src/model.ts'
import { lsnOf, parseLsn, printLsn } from './position.ts'
import type { Retained } from './retained.ts'
import { identifySystem, timelineHistory } from './source-queries.ts'

/** H11: the log that positions count in must be the one that was recorded, or follow from it behind `after`. Resolves to its timeline. */
export async function followTimeline(client: pg.Client, made: Retained, after: Position): Promise<number> {
  const system = await identifySystem(client)
  const diverged = (observed: string, needed: string): Failure =>
    new Failure('SOURCE_DIVERGED', { object: 'source', observed, needed })
  if (system.systemId !== made.systemId) throw diverged(`system ${system.systemId}`, `system ${made.systemId}`)
  if (system.timeline === made.timeline) return made.timeline
  const line = `timeline ${system.timeline}`
  if (system.timeline < made.timeline) throw diverged(line, `timeline ${made.timeline} or its successors`)
  const history = await timelineHistory(client, system.timeline)
  const left = history
    .split('\n')
    .map((text) => text.trim().split(/\s+/))
    .find(([from]) => Number(from) === made.timeline)
  const switched = left?.[1]
  if (switched === undefined) throw diverged(line, `a successor of timeline ${made.timeline}`)
  if (parseLsn(switched) < lsnOf(after)) {
    throw diverged(`${line}, which left ${made.timeline} at ${switched}`, `all up to ${printLsn(lsnOf(after))}`)
  }
  return system.timeline
}

/** H11: what the slot acknowledged (`confirmed`) and the source's log (`end`) must agree with what is durable in ours. */
export function checkPlace(name: string, made: Retained, after: Position, confirmed: bigint, end: bigint): void {
  // Changes up to the newest durable watermark may have been acknowledged, and never one beyond it.
  const known = after === origin ? BigInt(`0x${made.consistentPoint}`) : lsnOf(after) + 1n
  const object = `slot ${name}`
  if (confirmed > known) {
    const observed = `it was acknowledged up to ${printLsn(confirmed)}`
    throw new Failure('SOURCE_DIVERGED', { object, observed, needed: `at most ${printLsn(known)}` })
  }
  if (known > end + 1n) {
    const observed = `the source's log ends at ${printLsn(end)}`
    throw new Failure('SOURCE_DIVERGED', { object, observed, needed: `at least ${printLsn(known)}` })
  }
}
