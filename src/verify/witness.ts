import { setTimeout as sleep } from 'node:timers/promises'
import type { Sink, Source } from '../connector.ts'

import { isRenewed } from '../coordinate/lease.ts'
import type { StateStore } from '../coordinate/state-store.ts'
import { Failure } from '../errors.ts'
import { comparePositions, heartbeatPrefix } from '../model.ts'
import { readRun } from '../run-record.ts'
import type { Witness } from './settle.ts'

const pollMs = 100

/** From outside of the pipeline's process: goes by what that writes down about once a second of the newest watermark it proved applied. NOT_RUNNING where
 *  no process runs the pipeline. */
export function witnessOf(source: Source, sink: Sink, store: StateStore): Witness {
  return {
    visible: async (signal) => await source.visible(signal),
    async applied(position, signal) {
      await source.emit(heartbeatPrefix, new Uint8Array(), signal) // for a watermark behind it soon
      for (let polls = 0; ; polls++) {
        const { applied } = await readRun(store, signal)
        if (applied !== undefined && comparePositions(applied.position, position) >= 0) {
          const checkpoints = await sink.checkpoints(signal)
          // Less than what it was proved by: the target was put back since.
          if (checkpoints.reduce((sum, { offset }) => sum + offset, 0) >= applied.offsets) return
        }
        if (polls === 20 && !(await isRenewed(store, 'capture', signal)))
          throw new Failure('NOT_RUNNING', {
            observed: 'no process runs the pipeline: nobody knows what the target lacks',
          })
        await sleep(pollMs, undefined, { signal })
      }
    },
  }
}
