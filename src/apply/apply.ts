import type { ChangeLog, FetchedBatch } from '../change-log/change-log.ts'
import type { Lane } from '../connector.ts'
import { asFailure, Failure } from '../errors.ts'
import { failpoint } from '../failpoint.ts'
import { partitionName, type Offset } from '../model.ts'
import type { Batcher } from './batcher.ts'

/** How long, in ms, a rejected batch waits for the rest of a source transaction before the rejection counts. */
const patience = 5000

/** How long, in ms, a pull waits at first while a partition stands at a barrier, which is asked for again after each; doubled up to `maxWait`, as
 *  others may copy for hours before they arrive. */
const barrierWait = 10

/** One lane: pull, fold, apply, until `stop` aborts: the batch in hand is finished then. The next pull is under way while a batch is applied.
 *  `maxWait`: ms a pull waits for data; a moved hold and a barrier that others wait for are noticed no later. Rejects with the first failure;
 *  FENCED if someone else has claimed a partition of ours: claim again and start anew. */
export async function applyLane(
  log: ChangeLog,
  lane: Lane,
  batcher: Batcher,
  schemas: { load(id: number, signal: AbortSignal, at?: Offset): Promise<void> },
  maxWait: number,
  stop: AbortSignal,
  signal: AbortSignal,
): Promise<void> {
  const untilStop = AbortSignal.any([stop, signal])
  let atBarrier = barrierWait
  const fetch = (): Promise<readonly FetchedBatch[]> => {
    const wait = batcher.atBarrier ? Math.min(atBarrier, maxWait) : maxWait
    atBarrier = batcher.atBarrier ? Math.min(2 * atBarrier, maxWait) : barrierWait
    const pull = log.fetch(batcher.wanted(), wait, untilStop)
    pull.catch(() => {}) // reported by the await below
    return pull
  }
  let pull = fetch()
  let rejectedSince: number | undefined
  for (;;) {
    let fetched: readonly FetchedBatch[]
    try {
      fetched = await pull
    } catch (error) {
      if (stop.aborted && !signal.aborted) return
      throw error
    }
    const { fenced } = batcher
    if (fenced !== undefined) throw new Failure('FENCED', { object: partitionName(fenced) })
    batcher.add(fetched)
    const { missing } = batcher
    if (missing !== undefined) await schemas.load(missing.id, signal, missing.at)
    const early = !batcher.full && !batcher.atBarrier // a pull without the standing partition would hold it up
    if (early) pull = fetch()
    for (let step = batcher.next(); step !== undefined; step = batcher.next()) {
      if (step.kind === 'arrive') {
        failpoint('apply.before-arrival')
        const arrival = await lane.arrive(step.barrier, step.advance, signal)
        failpoint('apply.after-arrival')
        if (arrival === 'done') {
          batcher.pass(step.barrier)
          atBarrier = barrierWait
        } else if (arrival === 'lost') batcher.lost([step.advance.to])
        continue
      }
      failpoint('apply.before-commit')
      try {
        batcher.lost(await lane.apply(step.batch, step.advances, signal))
        rejectedSince = undefined
      } catch (error) {
        // The rest of a source transaction may set right what its first half breaks.
        if (asFailure(error).code !== 'ROW_REJECTED' || !batcher.putBack()) throw error
        rejectedSince ??= performance.now()
        if (performance.now() - rejectedSince > patience) throw error
        break
      }
      failpoint('apply.between-commit-and-answer')
      if (stop.aborted) return
    }
    if (stop.aborted) return
    if (!early) pull = fetch()
  }
}
