import type { EncodedBatch } from '../change-log/change-log.ts'
import { batchMargin, defaultMessageBytes, largestDecompressed } from '../change-log/batch-layout.ts'
import { batchBuilder, release, tooLarge, type BatchBuilder } from '../change-log/record-batch.ts'
import { partitionName, type TopicPartition } from '../model.ts'

/** Open record batches of many partitions, and the rounds they go out in: at most one batch of a partition in a round, in the order they were filled. */
export interface Outbox {
  /** A handle for `add`. */
  slot(at: TopicPartition): number
  /** Copies the record; `keyStart` -1: no key. */
  add(
    slot: number,
    bytes: Uint8Array,
    keyStart: number,
    keyEnd: number,
    valueStart: number,
    valueEnd: number,
    timestamp: number,
  ): void
  addRecord(at: TopicPartition, key: Uint8Array, value: Uint8Array, timestamp: number): void
  addControl(at: TopicPartition, kind: string, key: Uint8Array, value: Uint8Array, timestamp: number): void
  /** A batch of this one control record, outside the rounds counted here. */
  control(at: TopicPartition, kind: string, key: Uint8Array, value: Uint8Array, timestamp: number): EncodedBatch
  /** Of everything not yet taken. */
  readonly bytes: number
  /** The number of the last round that anything added so far goes into; -1 before the first. */
  readonly lastRound: number
  /** The last round left records behind that were there when it was taken. */
  readonly owing: boolean
  /** The next round; empty if there is nothing. Its batches are lent until `landed`. */
  take(): readonly EncodedBatch[]
  /** The number of the round that was taken last; its memory is used again. */
  landed(): number
}
type Open = {
  readonly at: TopicPartition
  readonly builder: BatchBuilder
  round: number
  size: number
  listed: boolean
}

/** Framing of a record beside key and value, at most. */
const recordOverhead = 40

/** `batchBytes`: of a batch of several records. `messageBytes`: the largest batch the log takes. */
export function createOutbox(
  { batchBytes, messageBytes = defaultMessageBytes }: { readonly batchBytes: number; readonly messageBytes?: number },
  compress: boolean,
): Outbox {
  const largestRecord = largestDecompressed(messageBytes) - batchMargin
  const slots = new Map<string, number>()
  const all: Open[] = []
  /** Those with records. */
  let filled: Open[] = []
  /** Batches that reached their bound, by round, from `next` on. */
  const cut: EncodedBatch[][] = []
  let next = 0
  let last = -1
  let owed = -1
  let bytes = 0
  let lent: readonly EncodedBatch[] = []

  const slot = (at: TopicPartition): number => {
    const name = partitionName(at)
    const known = slots.get(name)
    if (known !== undefined) return known
    all.push({ at, builder: batchBuilder({ compress, messageBytes }), round: 0, size: 0, listed: false })
    slots.set(name, all.length - 1)
    return all.length - 1
  }
  const open = (index: number): Open => {
    const found = all[index]
    if (found === undefined) throw new RangeError(`no slot ${index}`)
    return found
  }
  const cutBatch = (into: Open): void => {
    const batch = into.builder.finish(into.at.topic, into.at.partition)
    const round = into.round - next
    while (cut.length <= round) cut.push([])
    cut[round]?.push(batch)
    into.round++
    into.size = 0
    into.listed = false
    filled = filled.filter((other) => other !== into)
  }
  /** Before a record of about `more` bytes goes in: a batch is over the bound only if it is a single record. */
  const prepare = (into: Open, more: number): void => {
    if (more > largestRecord) throw tooLarge(into.at.topic, more, largestRecord)
    if (into.listed && into.size + more > batchBytes) cutBatch(into)
    if (into.listed) return
    into.listed = true
    if (into.round < next) into.round = next
    if (into.round > last) last = into.round
    filled.push(into)
  }
  const count = (into: Open): void => {
    const { size } = into.builder
    bytes += size - into.size
    into.size = size
  }
  const add: Outbox['add'] = (index, source, keyStart, keyEnd, valueStart, valueEnd, timestamp) => {
    const into = open(index)
    prepare(into, valueEnd - Math.max(0, keyStart) + recordOverhead)
    into.builder.add(source, keyStart, keyEnd, valueStart, valueEnd, timestamp)
    count(into)
  }
  return {
    slot,
    add,
    addRecord(at, key, value, timestamp) {
      const both = Buffer.concat([key, value])
      add(slot(at), both, 0, key.length, key.length, both.length, timestamp)
    },
    addControl(at, kind, key, value, timestamp) {
      const into = open(slot(at))
      prepare(into, key.length + value.length + 2 * recordOverhead)
      into.builder.addControl(kind, key, value, timestamp)
      count(into)
    },
    control({ topic, partition }, kind, key, value, timestamp) {
      const builder = batchBuilder({ compress: false })
      builder.addControl(kind, key, value, timestamp)
      return builder.finish(topic, partition)
    },
    get bytes() {
      return bytes
    },
    get lastRound() {
      return last
    },
    get owing() {
      return owed >= next
    },
    take() {
      owed = last
      const round = cut.shift() ?? []
      const later: Open[] = []
      for (const into of filled) {
        if (into.round > next) {
          later.push(into)
          continue
        }
        into.listed = false
        into.size = 0
        round.push(into.builder.finish(into.at.topic, into.at.partition))
      }
      filled = later
      next++
      bytes = 0
      for (const into of filled) bytes += into.size
      for (const batch of cut.flat()) bytes += batch.bytes.length
      lent = round
      return round
    },
    landed() {
      for (const batch of lent) release(batch)
      lent = []
      return next - 1
    },
  }
}
