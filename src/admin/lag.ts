import {
  comparePositions,
  partitionName,
  type Checkpoint,
  type Offset,
  type Position,
  type TopicPartition,
  type Watermark,
} from '../model.ts'

type Proof = { readonly position: Position; readonly committedAt: number }
type Pending = Proof & { readonly full: readonly Offset[]; readonly changed: ReadonlyMap<string, number> }
type Looked = {
  readonly checkpoints: readonly Checkpoint[]
  readonly newest: Pending | undefined
  readonly byName: ReadonlyMap<string, Checkpoint>
  readonly ends: ReadonlyMap<string, number>
}
/** What the control topic says, against what checkpoints say. `pending` is bounded: while the target is behind, watermarks in between are
 *  thinned out, which makes the proof coarser, never wrong. */
export interface WatermarkTrail {
  /** In the order of the control topic, repeats allowed. Ignored unless its epoch is at least the highest seen and its position rises (H14). */
  add(record: Watermark): void
  /** The next record may not follow the last one: nothing is proved by what changed since a full vector that was not seen. `partitions`: all that are
   *  captured; others are of tables that were left out, and applied no further. */
  restart(partitions: readonly TopicPartition[]): void
  readonly latest: Proof | undefined
  /** The newest watermark that these checkpoints have reached, in all partitions it names. */
  applied(checkpoints: readonly Offset[]): Proof | undefined
  /** A watermark at or after `position` was seen, and these partitions have reached their ends in it, or their mark has reached the position. */
  stands(partitions: readonly TopicPartition[], checkpoints: readonly Checkpoint[], position: Position): boolean
}

const most = 1024

export function watermarkTrail(): WatermarkTrail {
  let epoch = 0
  let full: readonly Offset[] | undefined
  let captured: ReadonlySet<string> | undefined
  let newest: Pending | undefined
  let proved: Proof | undefined
  let pending: Pending[] = []
  /** Of this many watermarks one is kept, beside the newest; doubled when `most` are waiting. */
  let stride = 1
  let passedOver = 0
  const passed = (watermark: Pending, offsets: ReadonlyMap<string, number>): boolean =>
    watermark.full.every((end) => {
      const name = partitionName(end)
      return (offsets.get(name) ?? 0) >= (watermark.changed.get(name) ?? end.offset)
    }) && watermark.changed.entries().every(([name, offset]) => (offsets.get(name) ?? 0) >= offset)
  /** Asked for one table after the other, with the same checkpoints: what answers is built once. */
  const lookUp = (checkpoints: readonly Checkpoint[]): Looked => {
    const ends = new Map(newest?.full.map((end) => [partitionName(end), end.offset]))
    newest?.changed.forEach((offset, name) => ends.set(name, offset))
    const byName = new Map(checkpoints.map((checkpoint) => [partitionName(checkpoint), checkpoint]))
    return { checkpoints, newest, byName, ends }
  }
  let looked = lookUp([])
  return {
    add(record) {
      if (record.epoch < epoch) return
      if (record.epoch > epoch) full = undefined
      epoch = record.epoch
      // Also of a watermark that proves nothing new: those after it name only what changed since.
      const known = captured
      const ends = known === undefined ? record.ends : record.ends.filter((end) => known.has(partitionName(end)))
      if (record.full) full = ends
      if (newest !== undefined && comparePositions(record.position, newest.position) <= 0) return
      if (full === undefined) return // the vector of a delta is not known
      const { position, committedAt } = record
      const changed = new Map(record.full ? [] : ends.map((end) => [partitionName(end), end.offset]))
      newest = { position, committedAt, full, changed }
      if (pending.length > 0 && ++passedOver < stride) pending.pop()
      else passedOver = 0
      pending.push(newest)
      if (pending.length <= most) return
      pending = pending.filter((_, i) => i % 2 === 1 || i === pending.length - 1)
      stride *= 2
    },
    restart(partitions) {
      full = undefined
      captured = new Set(partitions.map(partitionName))
    },
    get latest() {
      return newest
    },
    applied(checkpoints) {
      const offsets = offsetsOf(checkpoints)
      // A later watermark asks for at least as much, so the newest one reached is found by halving.
      let low = 0
      let high = pending.length
      while (low < high) {
        const middle = (low + high) >>> 1
        const watermark = pending[middle]
        if (watermark !== undefined && passed(watermark, offsets)) low = middle + 1
        else high = middle
      }
      const reached = pending[low - 1]
      if (reached !== undefined) {
        proved = { position: reached.position, committedAt: reached.committedAt }
        pending = pending.slice(low)
      }
      if (pending.length < most / 4) stride = 1 // the newest would move on for ever before it is reached
      return proved
    },
    stands(partitions, checkpoints, position) {
      if (checkpoints !== looked.checkpoints || newest !== looked.newest) looked = lookUp(checkpoints)
      const { byName, ends } = looked
      const vouched = newest !== undefined && comparePositions(newest.position, position) >= 0 ? newest : undefined
      return partitions.every((at) => {
        const checkpoint = byName.get(partitionName(at))
        if (checkpoint === undefined) return false
        if (comparePositions(checkpoint.mark.position, position) >= 0) return true
        return vouched !== undefined && checkpoint.offset >= (ends.get(partitionName(at)) ?? 0)
      })
    },
  }
}

function offsetsOf(checkpoints: readonly Offset[]): ReadonlyMap<string, number> {
  return new Map(checkpoints.map((checkpoint) => [partitionName(checkpoint), checkpoint.offset]))
}
