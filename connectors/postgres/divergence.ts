import type pg from 'pg'
import { Failure } from '../../src/errors.ts'
import { origin, type Position } from '../../src/model.ts'
import { lsnOf, parseLsn, printLsn } from './position.ts'
import type { Retained } from './retained.ts'
import { identifySystem, timelineHistory } from './source-queries.ts'

/** The timeline of a source's log, and where it left the one that was recorded, if it is another. */
export type Line = { readonly timeline: number; readonly left?: bigint }

/** H11: the log that positions count in must be the one that was recorded, or follow from it behind `after`. */
export async function readLine(client: pg.Client, made: Retained, after: Position): Promise<Line> {
  const system = await identifySystem(client)
  if (system.systemId !== made.systemId) throw diverged(`system ${system.systemId}`, `system ${made.systemId}`)
  if (system.timeline === made.timeline) return { timeline: made.timeline }
  const line = `timeline ${system.timeline}`
  if (system.timeline < made.timeline) throw diverged(line, `timeline ${made.timeline} or its successors`)
  const history = await timelineHistory(client, system.timeline)
  const left = history
    .split('\n')
    .map((text) => text.trim().split(/\s+/))
    .find(([from]) => Number(from) === made.timeline)
  const switched = left?.[1]
  if (switched === undefined) throw diverged(line, `a successor of timeline ${made.timeline}`)
  const found = { timeline: system.timeline, left: parseLsn(switched) }
  demandPublished(made, found, after, found.left)
  return found
}

/** H11: what was sent from `published` was a record that began there, so it is in this log only if that goes on behind it. `end`: of the log now. */
export function demandPublished(made: Retained, line: Line, published: Position, end: bigint): void {
  const place = lsnOf(published)
  if (published === origin || (line.left === undefined ? place <= end : place < line.left)) return
  const observed =
    line.left === undefined
      ? `its log ends at ${printLsn(end)}`
      : `timeline ${line.timeline}, which left ${made.timeline} at ${printLsn(line.left)}`
  throw diverged(observed, `all up to ${printLsn(place)}, which was read from it before`)
}

function diverged(observed: string, needed: string): Failure {
  return new Failure('SOURCE_DIVERGED', { object: 'source', observed, needed })
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
