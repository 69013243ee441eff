import type { Decoder } from '../avro/plan.ts'
import { forgetMemory } from '../avro/varint.ts'
import type { FetchedBatch } from '../change-log/change-log.ts'
import {
  compareMarks,
  comparePositions,
  partitionName,
  type Advance,
  type Barrier,
  type Checkpoint,
  type Offset,
  type TopicPartition,
} from '../model.ts'
import { Op, type LaneBatch } from '../rows.ts'
import { changeBatchOf, clearArrived, createArrived } from './arrived.ts'
import { createFold } from './fold.ts'
import { createIntake, type MissingSchema } from './intake.ts'
import { Partition, type Span } from './partition.ts'

export type Step =
  | { readonly kind: 'batch'; readonly batch: LaneBatch; readonly advances: readonly Advance[] }
  | { readonly kind: 'arrive'; readonly barrier: Barrier; readonly advance: Advance }
/** Admits, decodes, folds and cuts; no I/O. One lane's: it pulls `wanted`, gives what came to `add`, and takes steps from `next` until there is none;
 *  each batch is settled by `lost`, each arrival by `pass`, `lost`, or nothing. */
export interface Batcher {
  /** Where to read on; partitions standing at a barrier or a hold, or lost, are left out. What a pull brings counts only for the last call. */
  wanted(): readonly Offset[]
  /** The byte bound has arrived: no pull beside the next apply. */
  readonly full: boolean
  /** A partition stands at a barrier, which will be offered or waits for others. */
  readonly atBarrier: boolean
  /** A schema id that stopped the last `add`: to be loaded before the next pull, which brings the record again. */
  readonly missing: MissingSchema | undefined
  /** Records passed over since the start; a run of `zombies` is worth an alarm (H12). */
  readonly dropped: { readonly repeats: number; readonly zombies: number }
  /** Changes committed since the start, each as it came. */
  readonly applied: number
  /** Partitions that are lost and not resumed yet. */
  readonly gone: readonly TopicPartition[]
  /** One of `gone` that `resume` showed under another claim: it will not come back by itself. */
  readonly fenced: TopicPartition | undefined
  /** Takes over everything it keeps: the fetched memory is not touched after it returns. */
  add(fetched: readonly FetchedBatch[]): void
  /** A standing arrival is offered once per `add`. A batch's memory is lent until the next call, or `add`. */
  next(): Step | undefined
  /** The barrier offered last is done: its partition goes on behind it. */
  pass(barrier: Barrier): void
  /** Settles the last step: committed without these partitions lost (none: as it was). Otherwise nothing was written: it is put back without them,
   *  and they wait for `resume`. */
  lost(partitions: readonly TopicPartition[]): void
  /** Puts the last batch back because it was rejected. True if a source transaction may be incomplete in it, so that more records can change that. */
  putBack(): boolean
  /** Holds that were moved, and partitions that were lost: those of another claim are left alone. `claimed`: the checkpoints come from this lane's
   *  own claim, and everything starts from them. */
  resume(checkpoints: readonly Checkpoint[], claimed?: boolean): void
}
type BatcherOptions = {
  /** As claimed by this lane. */
  readonly checkpoints: readonly Checkpoint[]
  readonly schemas: { decoder(id: number): Decoder | undefined }
  readonly limits: { readonly batchRows: number; readonly batchBytes: number }
}
type Taken = {
  readonly partition: Partition
  readonly before: readonly Span[]
  readonly to: Checkpoint
  /** The last transaction taken may go on in records that have not arrived. */
  readonly open: boolean
}
type InHand =
  | { readonly kind: 'batch'; readonly taken: readonly Taken[]; readonly rows: number }
  | { readonly kind: 'arrive'; readonly partition: Partition; readonly barrier: Barrier; readonly to: Checkpoint }

/** A batch is cut at the end of a source transaction, unless that would make it so many times larger. */
const stretch = 4

export function createBatcher({ checkpoints, schemas, limits }: BatcherOptions): Batcher {
  const partitions = new Map<string, Partition>()
  const arrived = createArrived()
  const fold = createFold()
  const intake = createIntake(arrived, schemas)
  let inHand: InHand | undefined
  let fenced: TopicPartition | undefined
  let pendingRows = 0
  let applied = 0
  let picked = new Int32Array(0)
  let turn = 0

  /** Cuts a batch off what has arrived: changes that may miss their row and others never in one. */
  const cut = (): Step | undefined => {
    const order = [...partitions.values()]
    if (picked.length < pendingRows) picked = new Int32Array(arrived.op.length)
    // Those to fold from the front, the others from the back.
    let folded = 0
    let inOrder = picked.length
    const schemasInBatch = new Map<string, number>()
    let mayMiss: boolean | undefined
    let rows = 0
    let bytes = 0
    const taken: Taken[] = []
    const advances: Advance[] = []
    /** Index of the first change of the partition that stays. */
    const take = (partition: Partition): number | undefined => {
      let run = -1
      let table = -1
      let toFold = true
      for (const span of partition.spans) {
        for (let i = span.from; i < span.to; i++) {
          const ownRun = arrived.run[i] ?? 0
          const over = rows >= limits.batchRows || bytes >= limits.batchBytes
          const far = rows >= stretch * limits.batchRows || bytes >= stretch * limits.batchBytes
          if (far || (over && arrived.runs[ownRun]?.position !== arrived.runs[run]?.position)) return i
          if (ownRun !== run) {
            const missing = arrived.runs[ownRun]?.mayMiss ?? false
            mayMiss ??= missing
            if (missing !== mayMiss) return i
            run = ownRun
          }
          const ownTable = arrived.table[i] ?? 0
          if (ownTable !== table) {
            const found = arrived.tables[ownTable]
            const name = found?.name ?? ''
            // Two schemas of a table never meet in a batch: keys are distinct over all groups.
            const same = schemasInBatch.get(name) ?? ownTable
            if (same !== ownTable) return i
            schemasInBatch.set(name, ownTable)
            table = ownTable
            toFold = found?.inOrder !== true
          }
          if (toFold && arrived.op[i] !== Op.patch) picked[folded++] = i
          else picked[--inOrder] = i
          rows++
          bytes += (arrived.end[i] ?? 0) - (arrived.old[i] ?? 0)
        }
      }
      return undefined
    }
    turn = (turn + 1) % Math.max(1, order.length)
    for (let n = 0; n < order.length; n++) {
      const partition = order[(n + turn) % order.length]
      if (partition === undefined || partition.stand === 'lost' || !partition.moved) continue
      const before = partition.spans
      const stays = take(partition)
      if (stays !== undefined && stays === before[0]?.from) continue
      const to = stays === undefined ? partition.reached() : reachedBefore(partition, stays)
      partition.spans = stays === undefined ? [] : after(before, stays)
      taken.push({ partition, before, to, open: stays === undefined && partition.stand === undefined })
      advances.push({ from: partition.at.offset, to })
    }
    if (advances.length === 0) return undefined
    pendingRows -= rows
    inHand = { kind: 'batch', taken, rows }
    const toFold = picked.subarray(0, folded)
    const rest = picked.slice(inOrder).reverse()
    const batch: LaneBatch = {
      groups: fold(arrived, toFold, mayMiss ?? false),
      inOrder: rest.length === 0 ? undefined : changeBatchOf(arrived, rest),
      mayMiss: mayMiss ?? false,
      ordered: () => changeBatchOf(arrived, both(toFold, rest).sort(byMark)),
    }
    return { kind: 'batch', batch, advances }
  }
  /** The last change before this one that was taken says how far the partition is. */
  const reachedBefore = (partition: Partition, stays: number): Checkpoint => {
    let i = stays - 1
    for (const span of partition.spans) if (span.from < stays) i = Math.min(span.to, stays) - 1
    const run = arrived.runs[arrived.run[i] ?? 0]
    if (run === undefined) throw new RangeError(`no run of change ${i}`)
    return {
      ...partition.at,
      offset: arrived.next[i] ?? 0,
      mark: { position: run.position, seq: arrived.seq[i] ?? 0 },
      captureEpoch: run.epoch,
    }
  }
  const byMark = (a: number, b: number): number => {
    const left = arrived.runs[arrived.run[a] ?? 0]
    const right = arrived.runs[arrived.run[b] ?? 0]
    if (left === undefined || right === undefined) return 0
    return comparePositions(left.position, right.position) || (arrived.seq[a] ?? 0) - (arrived.seq[b] ?? 0)
  }

  const arrival = (): Step | undefined => {
    for (const partition of partitions.values()) {
      const { barrier, at } = partition
      if (partition.stand !== 'barrier' || barrier === undefined || partition.offered) continue
      partition.offered = true
      const to = { ...at, offset: partition.read + 1, mark: barrier.mark, captureEpoch: barrier.epoch }
      inHand = { kind: 'arrive', partition, barrier, to }
      return { kind: 'arrive', barrier, advance: { from: at.offset, to } }
    }
    return undefined
  }

  const restore = ({ partition, before }: Taken): void => {
    partition.spans = [...before]
    for (const span of before) pendingRows += span.to - span.from
  }
  const forget = (partition: Partition): void => {
    for (const span of partition.spans) pendingRows -= span.to - span.from
    partition.spans = []
  }
  /** Starts from this checkpoint, with the hold set meanwhile. */
  const rewind = (partition: Partition, at: Checkpoint): void => {
    forget(partition)
    partition.rewind(at)
  }
  const settle = (partition: Partition, to: Checkpoint): void => {
    if (partition.again) rewind(partition, withCopy(to, partition.at))
    else partition.at = to
  }
  for (const checkpoint of checkpoints) partitions.set(partitionName(checkpoint), new Partition(checkpoint))

  return {
    dropped: intake.dropped,
    wanted() {
      const from: Offset[] = []
      for (const partition of partitions.values()) if (partition.stand === undefined) from.push(partition.ask())
      return from
    },
    get full() {
      return arrived.images.at >= limits.batchBytes
    },
    get atBarrier() {
      return partitions.values().some(({ stand }) => stand === 'barrier')
    },
    get applied() {
      return applied
    },
    get missing() {
      return intake.missing
    },
    get gone() {
      return [...partitions.values()].filter(({ stand }) => stand === 'lost').map(({ at }) => at)
    },
    get fenced() {
      return fenced
    },
    add(fetched) {
      if (pendingRows === 0 && inHand === undefined) clearArrived(arrived)
      intake.missing = undefined
      for (const batch of fetched) {
        const partition = partitions.get(partitionName(batch))
        if (partition?.expects() === true) pendingRows += intake.read(partition, batch)
      }
      forgetMemory()
      for (const partition of partitions.values()) partition.offered = false
    },
    next() {
      if (inHand?.kind === 'batch') throw new Error('the batch in hand is not settled')
      if (inHand?.partition.again === true) rewind(inHand.partition, inHand.partition.at)
      inHand = undefined
      return cut() ?? arrival()
    },
    pass(barrier) {
      if (inHand?.kind !== 'arrive' || compareMarks(inHand.barrier.mark, barrier.mark) !== 0)
        throw new Error('another barrier was offered')
      const { partition, to } = inHand
      inHand = undefined
      rewind(partition, partition.again ? withCopy(to, partition.at) : to)
      // Others standing at it in this lane need not wait for the next pull.
      for (const other of partitions.values())
        if (other.barrier !== undefined && compareMarks(other.barrier.mark, barrier.mark) === 0) other.offered = false
    },
    lost(gone) {
      const hand = inHand
      inHand = undefined
      if (hand === undefined) return
      const names = new Set(gone.map(partitionName))
      if (names.size === 0 && hand.kind === 'batch') applied += hand.rows
      for (const taken of hand.kind === 'batch' ? hand.taken : [hand]) {
        const { partition, to } = taken
        if (names.size === 0) {
          settle(partition, to)
          continue
        }
        if ('before' in taken) restore(taken)
        if (partition.again) rewind(partition, partition.at)
        else if (names.has(partition.name)) {
          rewind(partition, partition.at)
          partition.stand = 'lost'
        }
      }
    },
    putBack() {
      const hand = inHand
      inHand = undefined
      if (hand?.kind !== 'batch') return false
      hand.taken.forEach(restore)
      for (const { partition } of hand.taken) if (partition.again) rewind(partition, partition.at)
      return hand.taken.some(({ open }) => open)
    },
    resume(all, claimed = false) {
      for (const checkpoint of all) {
        const name = partitionName(checkpoint)
        const partition = partitions.get(name)
        if (partition === undefined) {
          if (claimed) partitions.set(name, new Partition(checkpoint))
          continue
        }
        const { at } = partition
        if (!claimed) {
          if (checkpoint.claim !== at.claim) {
            if (partition.stand === 'lost') fenced = at
            continue
          }
          const sameCopy = checkpoint.hold === at.hold && checkpoint.loose === at.loose
          if (sameCopy && partition.stand !== 'lost') continue
        }
        if (fenced === at) fenced = undefined
        // What we committed last may be newer than what was read.
        const base = claimed || checkpoint.offset > at.offset ? checkpoint : at
        const now = withCopy(base, checkpoint)
        if (isInHand(partition)) {
          partition.at = now
          partition.again = true
        } else rewind(partition, now)
      }
    },
  }

  function isInHand(partition: Partition): boolean {
    if (inHand === undefined) return false
    if (inHand.kind === 'arrive') return inHand.partition === partition
    return inHand.taken.some((taken) => taken.partition === partition)
  }
}

/** `at` with the hold and the looseness of `copy`. */
function withCopy(at: Checkpoint, copy: Checkpoint): Checkpoint {
  const { hold: _, ...rest } = at
  return { ...rest, loose: copy.loose, ...(copy.hold === undefined ? {} : { hold: copy.hold }) }
}

function after(spans: readonly Span[], stays: number): Span[] {
  return spans.filter(({ to }) => to > stays).map(({ from, to }) => ({ from: Math.max(from, stays), to }))
}

function both(a: Int32Array, b: Int32Array): Int32Array {
  const all = new Int32Array(a.length + b.length)
  all.set(a)
  all.set(b, a.length)
  return all
}
