import { decodeControl, isControl } from '../avro/control.ts'
import type { ChangeLog, FetchedBatch } from '../change-log/change-log.ts'
import { controlTopic } from '../change-log/topics.ts'
import { asFailure } from '../errors.ts'
import type { Watermark } from '../model.ts'

/** Control records looked at before the end: with a watermark a second, the last full vector is among them, and what was proved before is proved again. */
const tail = 1024

/** Reads the watermarks of the topic's tail and those written from now on, in order, for as long as `signal` lets it. */
export async function followWatermarks(
  log: ChangeLog,
  pipeline: string,
  seen: (record: Watermark) => void,
  signal: AbortSignal,
): Promise<void> {
  const at = { topic: controlTopic(pipeline), partition: 0 }
  const end = (await log.ends([at], signal))[0]?.offset ?? 0
  let offset = Math.max(0, end - tail)
  while (!signal.aborted) {
    let fetched: readonly FetchedBatch[]
    try {
      fetched = await log.fetch([{ ...at, offset }], 1000, signal)
    } catch (error) {
      if (asFailure(error).code !== 'LOG_GAP' || offset >= end) throw error
      offset = end - Math.floor((end - offset) / 2) // older records have expired
      continue
    }
    for (const batch of fetched) {
      for (let i = 0; i < batch.count; i++) {
        const from = batch.bounds[4 * i + 2] ?? -1
        if (from < 0) continue
        const value = batch.bytes.subarray(from, batch.bounds[4 * i + 3])
        if (!isControl(value)) continue
        const record = decodeControl(value)
        if (record.kind === 'watermark') seen(record)
      }
      offset = batch.next
    }
  }
}
