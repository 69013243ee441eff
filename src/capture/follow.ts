import { decodeControl } from '../avro/control.ts'
import type { ChangeLog } from '../change-log/change-log.ts'
import { controlTopic } from '../change-log/topics.ts'
import type { Watermark } from '../model.ts'

/** Reads the watermarks written from now on, for as long as `signal` lets it. Each capture begins with a full vector, and repeats it once a minute. */
export async function followWatermarks(
  log: ChangeLog,
  pipeline: string,
  seen: (record: Watermark) => void,
  signal: AbortSignal,
): Promise<void> {
  const at = { topic: controlTopic(pipeline), partition: 0 }
  let offset = (await log.ends([at], signal))[0]?.offset ?? 0
  while (!signal.aborted) {
    for (const batch of await log.fetch([{ ...at, offset }], 1000, signal)) {
      for (let i = 0; i < batch.count; i++) {
        const from = batch.bounds[4 * i + 2] ?? -1
        if (from < 0) continue
        const record = decodeControl(batch.bytes.subarray(from, batch.bounds[4 * i + 3]))
        if (record.kind === 'watermark') seen(record)
      }
      offset = batch.next
    }
  }
}
