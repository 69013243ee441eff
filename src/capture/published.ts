import { decodeControl } from '../avro/control.ts'
import { readPrefix } from '../avro/decoder.ts'
import { emptyPrefix, type Prefix } from '../avro/plan.ts'
import type { ChangeLog, FetchedBatch } from '../change-log/change-log.ts'
import { asFailure } from '../errors.ts'
import {
  comparePositions,
  origin,
  partitionName,
  type Checkpoint,
  type Epoch,
  type Offset,
  type Position,
  type TopicPartition,
} from '../model.ts'
import type { Tail } from './capture.ts'

/** Where a capture goes on: with what was committed behind `after`. What earlier captures published goes up to `published`, but for records from the
 *  offsets of `unread` on; `epoch`: the highest seen before such an offset. */
export type Place = {
  readonly after: Position
  readonly published: Position
  readonly unread: readonly (Offset & { readonly epoch: Epoch })[]
}

/** What is known without reading data: watermarks tell of what stands before their offsets, checkpoints of what is applied. */
export function placeOf(
  tail: Tail,
  start: Position,
  partitions: readonly TopicPartition[],
  checkpoints: readonly Checkpoint[],
): Place {
  const ends = new Map(tail.ends.map((end) => [partitionName(end), end.offset]))
  const applied = new Map(checkpoints.map((checkpoint) => [partitionName(checkpoint), checkpoint]))
  let { published } = tail
  const unread = partitions.map((at) => {
    const end = ends.get(partitionName(at))
    const checkpoint = applied.get(partitionName(at))
    // A table that was added since the last watermark begins at a mark which is no change's.
    const told = end !== undefined || tail.watermark === undefined
    if (told && checkpoint !== undefined) published = later(published, checkpoint.mark.position)
    // A copy has read the source up to there.
    if (checkpoint !== undefined) published = later(later(published, checkpoint.hold ?? origin), checkpoint.loose)
    const offset = Math.max(end ?? 0, checkpoint?.offset ?? 0)
    return { ...at, offset, epoch: Math.max(tail.vouchedIn, checkpoint?.captureEpoch ?? 0) }
  })
  return { after: tail.watermark?.position ?? start, published, unread }
}

/** How long, in ms, one pull waits for a log that is slow to answer; asked again until the signal aborts. */
const maxWait = 1000

/** The newest place that anyone published from and whose records count, also where an older one was sent again behind it. `opened`: the ends after this
 *  capture's epoch records: whoever wrote before wakes up in vain from there on (H1, H11). Reads what was sent since the last watermark. */
export async function newestPublished(
  log: ChangeLog,
  { published, unread }: Place,
  opened: readonly Offset[],
  signal: AbortSignal,
): Promise<Position> {
  const own = new Map(opened.map((end) => [partitionName(end), end.offset - 1]))
  const open = ({ offset, ...at }: Offset): boolean => offset < (own.get(partitionName(at)) ?? 0)
  const prefix = emptyPrefix()
  let newest = published
  const read = (at: Place['unread'][number], batch: FetchedBatch): Place['unread'][number] => {
    let { epoch } = at
    for (let i = 0; i < batch.count; i++) {
      if (!open({ ...at, offset: batch.offsets[i] ?? 0 })) break
      const kind = readPrefix(batch, i, prefix)
      if (kind === 'none') continue
      const { epoch: written, position } = kind === 'change' ? stamp(batch, prefix) : controlStamp(batch, i)
      if (written < epoch) continue // of a capture that had a successor here: readers drop it
      epoch = written
      if (position !== undefined) newest = later(newest, position)
    }
    return { ...at, offset: batch.next, epoch }
  }

  let left = await stillThere(log, unread.filter(open), signal)
  while ((left = left.filter(open)).length > 0) {
    let fetched: readonly FetchedBatch[]
    try {
      fetched = await log.fetch(left, maxWait, signal)
    } catch (error) {
      if (asFailure(error).code !== 'LOG_GAP') throw error
      const moved = await stillThere(log, left, signal) // retention goes on meanwhile
      if (moved.every(({ offset }, i) => offset === left[i]?.offset)) throw error
      left = moved
      continue
    }
    const seen = new Map(fetched.map((batch) => [partitionName(batch), batch]))
    left = left.map((at) => {
      const batch = seen.get(partitionName(at))
      return batch === undefined ? at : read(at, batch)
    })
  }
  return newest
}

type Stamp = { readonly epoch: Epoch; readonly position?: Position }

function stamp({ bytes }: FetchedBatch, { epoch, positionStart, positionEnd }: Prefix): Stamp {
  return { epoch, position: Buffer.from(bytes.subarray(positionStart, positionEnd)).toString() as Position }
}

function controlStamp({ bytes, bounds }: FetchedBatch, i: number): Stamp {
  const record = decodeControl(bytes.subarray(bounds[4 * i + 2], bounds[4 * i + 3]))
  return record.kind === 'barrier' ? { epoch: record.epoch, position: record.mark.position } : { epoch: record.epoch }
}

async function stillThere(log: ChangeLog, unread: Place['unread'], signal: AbortSignal): Promise<Place['unread']> {
  if (unread.length === 0) return unread
  const lows = await log.lows(unread, signal)
  return unread.map((at, i) => ({ ...at, offset: Math.max(at.offset, lows[i]?.offset ?? 0) }))
}

function later(a: Position, b: Position): Position {
  return comparePositions(a, b) < 0 ? b : a
}
