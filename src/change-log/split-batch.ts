import { asBuffer, At, Attribute, readOffset } from './batch-layout.ts'
import type { EncodedBatch } from './change-log.ts'
import { readBatches } from './read-batches.ts'
import { batchBuilder, stamp } from './record-batch.ts'

/** Two batches with the same records in the same order, for a log that refuses the whole as too large. Control records keep their header. */
export function splitBatch(batch: EncodedBatch, messageBytes?: number): readonly [EncodedBatch, EncodedBatch] {
  const whole = Buffer.from(batch.bytes)
  stamp({ ...batch, bytes: whole }, -1n, -1, -1)
  const compress = (whole.readInt16BE(At.attributes) & Attribute.codec) !== 0
  const { bytes, bounds, count } = readBatches(batch, whole, readOffset(whole, 0), 0)
  const time = Number(whole.readBigInt64BE(At.maxTimestamp))
  const half = (from: number, to: number): EncodedBatch => {
    const builder = batchBuilder({ compress, messageBytes })
    for (let i = from; i < to; i++) {
      const [keyStart = -1, keyEnd = -1, valueStart = -1, valueEnd = -1] = bounds.subarray(i * 4, i * 4 + 4)
      const kind = kindAfter(asBuffer(bytes), valueEnd)
      if (kind === undefined) builder.add(bytes, keyStart, keyEnd, valueStart, valueEnd, time)
      else builder.addControl(kind, bytes.subarray(keyStart, keyEnd), bytes.subarray(valueStart, valueEnd), time)
    }
    return builder.finish(batch.topic, batch.partition)
  }
  const middle = count >> 1
  return [half(0, middle), half(middle, count)]
}

/** What `addControl` wrote behind the value: one header, its name, the kind; all lengths in one byte. */
function kindAfter(bytes: Buffer, valueEnd: number): string | undefined {
  if (valueEnd < 0 || bytes[valueEnd] !== 2) return undefined
  const name = (bytes[valueEnd + 1] ?? 0) >> 1
  const at = valueEnd + 2 + name
  return bytes.toString('utf8', at + 1, at + 1 + ((bytes[at] ?? 0) >> 1))
}
