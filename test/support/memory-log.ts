import { randomUUID } from 'node:crypto'
import { arrivals } from '../../src/change-log/arrivals.ts'
import { asBuffer, writeOffset } from '../../src/change-log/batch-layout.ts'
import type { ChangeLog, EncodedBatch, FetchedBatch, Topic } from '../../src/change-log/change-log.ts'
import { readBatches } from '../../src/change-log/read-batches.ts'
import { stamp } from '../../src/change-log/record-batch.ts'
import { Failure } from '../../src/errors.ts'
import { partitionName, type Offset, type TopicPartition } from '../../src/model.ts'

type Stored = { readonly base: number; readonly bytes: Buffer; readonly count: number }
type Partition = { low: number; end: number; readonly batches: Stored[] }

/** What outlives a log that was closed: pass it to the next `memoryLog` to open the same one again. */
export type MemoryLogData = {
  readonly topics: Map<string, Topic & { readonly id: string }>
  readonly partitions: Map<string, Partition>
}
export type MemoryLogOptions = {
  readonly data?: MemoryLogData
  /** Overwrites lent bytes with 0xEE once a later fetch of their partition settles. Default true. */
  readonly poison?: boolean
  /** Called before and after each append took effect: a rejection is the append's; `after` makes a lost answer. */
  readonly before?: (round: readonly EncodedBatch[]) => Promise<void>
  readonly after?: (round: readonly EncodedBatch[]) => Promise<void>
}
/** A change log in memory with the contract of the real ones. */
export interface MemoryLog extends ChangeLog {
  readonly data: MemoryLogData
  /** Forgets records below `offset`, as retention does. */
  truncate(at: TopicPartition, offset: number): void
}

const pullBytes = 1 << 20

export function memoryLog(options: MemoryLogOptions = {}): MemoryLog {
  const data: MemoryLogData = options.data ?? { topics: new Map(), partitions: new Map() }
  const { topics, partitions } = data
  const poison = options.poison ?? true
  const lent = new Map<string, Buffer>()
  const news = arrivals()
  let appending = false
  let closed = false

  const find = (at: TopicPartition): Partition => {
    const partition = partitions.get(partitionName(at))
    if (partition === undefined) throw new Failure('TOPIC_MISMATCH', { object: partitionName(at), observed: 'missing' })
    return partition
  }
  const check = (signal: AbortSignal): void => {
    signal.throwIfAborted()
    if (closed) throw new Failure('BUG', { observed: 'the log is closed' })
  }

  function pull(from: readonly Offset[]): FetchedBatch[] {
    const pulled: FetchedBatch[] = []
    for (const at of from) {
      const { low, end, batches } = find(at)
      if (at.offset < low || at.offset > end)
        throw new Failure('LOG_GAP', {
          object: partitionName(at),
          observed: `offset ${at.offset} is wanted, ${low} to ${end} are there`,
        })
      if (at.offset === end) continue
      const pieces: Buffer[] = []
      let size = 0
      for (let i = indexOf(batches, at.offset); i < batches.length && size < pullBytes; i++) {
        const bytes = batches[i]?.bytes ?? Buffer.alloc(0)
        pieces.push(bytes)
        size += bytes.length
      }
      pulled.push(readBatches(at, Buffer.concat(pieces), at.offset, end))
    }
    return pulled
  }

  return {
    data,
    async open(wanted, signal) {
      check(signal)
      for (const topic of wanted) {
        const there = topics.get(topic.name)
        if (there === undefined) {
          topics.set(topic.name, { ...topic, id: randomUUID() })
          for (let partition = 0; partition < topic.partitions; partition++)
            partitions.set(partitionName({ topic: topic.name, partition }), { low: 0, end: 0, batches: [] })
        } else if (there.partitions !== topic.partitions || there.cleanup !== topic.cleanup) {
          throw new Failure('TOPIC_MISMATCH', {
            object: `topic ${topic.name}`,
            observed: `${there.partitions} partitions, ${there.cleanup}`,
            needed: `${topic.partitions} partitions, ${topic.cleanup}`,
          })
        } else if (topic.id !== undefined && topic.id !== there.id) {
          throw new Failure('TOPIC_MISMATCH', { object: `topic ${topic.name}`, observed: there.id, needed: topic.id })
        }
      }
    },
    async topicIds(names, signal) {
      check(signal)
      const ids = new Map<string, string>()
      for (const name of names) {
        const topic = topics.get(name)
        if (topic !== undefined) ids.set(name, topic.id)
      }
      return ids
    },
    async append(round, signal) {
      check(signal)
      if (appending) throw new Failure('BUG', { observed: 'two appends at once' })
      if (new Set(round.map(partitionName)).size !== round.length)
        throw new Failure('BUG', { observed: 'two batches of one partition in a round' })
      appending = true
      try {
        await options.before?.(round)
        check(signal)
        const ends = round.map((batch) => {
          const partition = find(batch)
          stamp(batch, -1n, -1, -1)
          const bytes = Buffer.from(batch.bytes)
          writeOffset(bytes, partition.end, 0)
          partition.batches.push({ base: partition.end, bytes, count: batch.count })
          partition.end += batch.count
          return { topic: batch.topic, partition: batch.partition, offset: partition.end }
        })
        await Promise.resolve()
        news.announce()
        await options.after?.(round)
        return ends
      } finally {
        appending = false
      }
    },
    async fetch(from, maxWait, signal) {
      check(signal)
      const deadline = performance.now() + maxWait
      for (;;) {
        const pulled = pull(from)
        const left = deadline - performance.now()
        if (pulled.length > 0 || left <= 0) {
          if (poison) {
            for (const at of from) {
              lent.get(partitionName(at))?.fill(0xee)
              lent.delete(partitionName(at))
            }
            for (const batch of pulled) lent.set(partitionName(batch), asBuffer(batch.bytes))
          }
          return pulled
        }
        await news.wait(left, signal)
        check(signal)
      }
    },
    async ends(wanted, signal) {
      check(signal)
      return wanted.map((at) => ({ topic: at.topic, partition: at.partition, offset: find(at).end }))
    },
    async lows(wanted, signal) {
      check(signal)
      return wanted.map((at) => ({ topic: at.topic, partition: at.partition, offset: find(at).low }))
    },
    truncate(at, offset) {
      const partition = find(at)
      partition.low = Math.min(offset, partition.end)
      while (partition.batches[0] && partition.batches[0].base + partition.batches[0].count <= offset) {
        partition.batches.shift()
      }
    },
    async [Symbol.asyncDispose]() {
      closed = true
      news.announce()
    },
  }
}

/** The batch that holds `offset`. */
function indexOf(batches: readonly Stored[], offset: number): number {
  let low = 0
  let high = batches.length - 1
  while (low < high) {
    const middle = (low + high + 1) >> 1
    if ((batches[middle]?.base ?? 0) <= offset) low = middle
    else high = middle - 1
  }
  return low
}
