import { setTimeout as sleep } from 'node:timers/promises'
import type { Sink, Source } from '../connector.ts'
import { isRenewed } from '../coordinate/lease.ts'
import type { StateStore } from '../coordinate/state-store.ts'
import { Failure } from '../errors.ts'
import { comparePositions, heartbeatPrefix, type Position } from '../model.ts'
import { readRun, type Applied } from '../run-record.ts'
import { stillness, type Witness } from './settle.ts'

const pollMs = 100

/** The newest place up to which the target is known to hold everything. */
export async function provedApplied(sink: Sink, store: StateStore, signal: AbortSignal): Promise<Position | undefined> {
  const { applied } = await readRun(store, signal)
  return applied !== undefined && (await isHeld(applied, sink, signal)) ? applied.position : undefined
}

/** Less than what it was proved by: the target was put back since. */
async function isHeld({ offsets }: Applied, sink: Sink, signal: AbortSignal): Promise<boolean> {
  const checkpoints = await sink.checkpoints(signal)
  return checkpoints.reduce((sum, { offset }) => sum + offset, 0) >= offsets
}

/** Of a pipeline as it stands: after a copy that is complete nothing is captured any more. */
export async function witnessFor(source: Source, sink: Sink, store: StateStore, signal: AbortSignal): Promise<Witness> {
  return (await store.get('complete', signal)) === undefined
    ? witnessOf(source, sink, store)
    : stillness(async (signal) => await source.visible(signal))
}

/** From outside of the pipeline's process: goes by what that writes down about once a second of the newest watermark it proved applied. NOT_RUNNING where
 *  no process runs the pipeline. */
function witnessOf(source: Source, sink: Sink, store: StateStore): Witness {
  return {
    visible: async (signal) => await source.visible(signal),
    async applied(position, signal) {
      await source.emit(heartbeatPrefix, new Uint8Array(), signal) // for a watermark behind it soon
      for (let polls = 0; ; polls++) {
        const { applied } = await readRun(store, signal)
        if (applied !== undefined && comparePositions(applied.position, position) >= 0)
          if (await isHeld(applied, sink, signal)) return
        if (polls === 20 && !(await isRenewed(store, 'capture', signal)))
          throw new Failure('NOT_RUNNING', {
            observed: 'no process runs the pipeline: nobody knows what the target lacks',
          })
        await sleep(pollMs, undefined, { signal })
      }
    },
  }
}
