import { Failure } from '../../src/errors.ts'
import { failpoint } from '../../src/failpoint.ts'
import {
  compareMarks,
  comparePositions,
  partitionName,
  tableName,
  type Advance,
  type Barrier,
  type Checkpoint,
  type Effect,
  type Mark,
} from '../../src/model.ts'
import type { Rows } from '../../src/rows.ts'
import { sqlState } from './errors.ts'
import { RoundTripError } from './frontend.ts'
import type { Session } from './lane-session.ts'
import { appendGuard, isGuardFailure } from './ordered.ts'
import { changeTable } from './change-table.ts'
import { qualified } from './queries.ts'
import { appendRekey } from './rekey.ts'
import { arriveAt, finishBarrier, insertCheckpoints, selectOwn, selectPartitions } from './sink-queries.ts'

/** One partition comes to a barrier (H17). Its checkpoint row is locked first, as in every batch, then the barrier's: of two lanes that arrive at
 *  once the second sees the first. Whoever completes the number performs the effect in the same transaction; a checkpoint moves past the
 *  barrier only when its partition asks after that. */
export async function arrive(
  session: Session,
  barrier: Barrier,
  advance: Advance,
): Promise<'done' | 'waiting' | 'lost'> {
  const { client, pipeline } = session
  const at = advance.to
  if (barrier.effect.kind === 'rekey') await session.plan(barrier.effect.schema)
  if (barrier.effect.kind === 'rekey' && barrier.partitions.length === 1)
    return await alone(session, barrier.effect, barrier.mark, advance)
  const work = async (): Promise<'done' | 'waiting' | 'lost'> => {
    const [now] = await selectPartitions(client, pipeline, [at], true)
    if (!now || now.claim !== at.claim || now.hold !== at.hold || now.loose !== at.loose) return 'lost'
    if (now.offset !== advance.from) {
      // The answer of the call that moved it past the barrier was lost.
      return now.offset === at.offset && comparePositions(now.mark.position, barrier.mark.position) >= 0
        ? 'done'
        : 'lost'
    }
    const { done, arrived } = await arriveAt(client, pipeline, barrier, at)
    failpoint('barrier.after-arrival')
    if (!done) {
      const there = new Set(arrived.map(partitionName))
      const missing = barrier.partitions.filter((partition) => !there.has(partitionName(partition)))
      // A table that was left out has no checkpoint; taken in again, it begins behind the barrier.
      const open = missing.length === 0 ? [] : await selectPartitions(client, pipeline, missing, false)
      if (open.some(({ mark }) => compareMarks(mark, barrier.mark) < 0)) return 'waiting'
      failpoint('barrier.before-effect')
      await perform(session, barrier, isLoose(at, barrier.mark))
      failpoint('barrier.between-effect-and-done')
      await finishBarrier(client, pipeline, barrier)
      failpoint('barrier.between-done-and-checkpoint')
    }
    appendGuard(session, [advance])
    await session.send()
    failpoint('barrier.before-commit')
    return 'done'
  }
  const settings =
    barrier.effect.kind === 'schema' ? `set local lock_timeout = '10s'; ${await session.unhurried()}` : ''
  const outcome = await session.durably(work, settings)
  if (outcome === 'done' && barrier.effect.kind === 'schema') await session.forget()
  return outcome
}

/** A move within one partition waits for nobody: it is one round trip under the guard, like a batch. */
async function alone(session: Session, effect: Rekey, mark: Mark, advance: Advance): Promise<'done' | 'lost'> {
  const { client, pipeline } = session
  const { to, from } = advance
  for (let attempt = 1; ; attempt++) {
    try {
      appendGuard(session, [advance])
      await rekey(session, isLoose(to, mark), effect, mark, 1)
      return 'done'
    } catch (error) {
      if (!isGuardFailure(error)) throw error
      const [now] = await selectPartitions(client, pipeline, [to], false)
      if (now?.claim !== to.claim) return 'lost'
      if (now.offset === to.offset) return 'done' // the answer was lost
      if (now.offset !== from || now.hold !== to.hold || now.loose !== to.loose || attempt === 3) return 'lost'
    }
  }
}

/** Whether the row of a change may be missing, as its table's copy stands. */
function isLoose({ hold, loose }: Checkpoint, mark: Mark): boolean {
  return hold !== undefined || comparePositions(mark.position, loose) <= 0
}

async function perform(session: Session, barrier: Barrier, mayMiss: boolean): Promise<void> {
  const { client, pipeline } = session
  const { effect } = barrier
  switch (effect.kind) {
    case 'truncate': {
      // One statement: tables that refer to each other can only be emptied together.
      const own = await selectOwn(client, pipeline, effect.tables)
      if (own.length === 0) return
      const tables = own.map((table) => `only ${qualified(table)}`).join(', ')
      const restart = effect.restartCounters ? ' restart identity' : ''
      await client.query(`truncate ${tables}${restart}${effect.cascade ? ' cascade' : ''}`).catch((error: unknown) => {
        if (!(error instanceof Error) || sqlState(error) !== '0A000') throw error
        throw new Failure('TARGET_SHAPE', {
          object: effect.tables.map(tableName).join(', '),
          observed: `a truncate is refused: ${error.message}`,
          next: 'Drop the foreign keys of other tables that refer to them until the cutover, then run again',
        })
      })
      return
    }
    case 'rekey':
      await rekey(session, mayMiss, effect, barrier.mark, 0)
      return
    case 'schema':
      await changeTable(session, effect)
      return
    case 'repartition': {
      const all = Array.from({ length: effect.partitions }, (_, partition) => ({ topic: effect.topic, partition }))
      await insertCheckpoints(client, pipeline, all)
      return
    }
    default:
      effect satisfies never
  }
}

type Rekey = Extract<Effect, { kind: 'rekey' }>

/** Moves one row to its new key and sets the cells that came; what did not come stays in the row. `before`: statements of the same round trip that
 *  stand before it. */
async function rekey(
  session: Session,
  mayMiss: boolean,
  { schema, oldKey, newImage }: Rekey,
  mark: Mark,
  before: number,
): Promise<void> {
  const plan = session.planned(schema)
  appendRekey(session.out, plan, rowOf(oldKey), rowOf(newImage), mayMiss, session.name)
  try {
    await session.send()
  } catch (error) {
    if (error instanceof RoundTripError && error.completed === before && sqlState(error.cause) === '22012')
      throw new Failure('TARGET_DRIFTED', {
        object: tableName(schema.table),
        observed: `no row for change ${mark.position} ${mark.seq}`,
      })
    throw error
  }
}

function rowOf(image: Uint8Array): Rows {
  return { bytes: image, starts: Int32Array.of(0, image.length), count: 1 }
}
