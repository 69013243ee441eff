import { setTimeout as sleep } from 'node:timers/promises'
import { Failure } from '../errors.ts'
import type { Logger } from '../logger.ts'
import { partitionName, type Offset } from '../model.ts'
import { asBuffer, At, batchMargin, batchSize, defaultMessageBytes, readOffset } from './batch-layout.ts'
import type { EncodedBatch } from './change-log.ts'
import type { KafkaCluster } from './kafka-cluster.ts'
import { fetchSections, listOffsets, unexpected } from './kafka-fetcher.ts'
import {
  KafkaError,
  passes,
  produceAnswer,
  produceRequest,
  producerIdAnswer,
  producerIdRequest,
} from './kafka-protocol.ts'
import { stamp, tooLarge } from './record-batch.ts'
import { splitBatch } from './split-batch.ts'

/** Appends rounds. One producer id for all; a sequence a partition, which moves only when a batch is known to be in the log. */
interface KafkaProducer {
  append(round: readonly EncodedBatch[], signal: AbortSignal): Promise<readonly Offset[]>
}

/** One partition's part of a round. */
type Job = {
  readonly at: EncodedBatch
  readonly name: string
  /** What is still to be sent, in order: the batch, or what it was split into. */
  parts: EncodedBatch[]
  /** The identity parts[0] was sent under; none: not sent yet under the present one. */
  stamped: Producer | undefined
  /** An answer was lost since: it may be in the log already. */
  open: boolean
  since: number
}
type Producer = { readonly id: bigint; readonly epoch: number }

const requestBytes = 32 * 1024 * 1024
const brokerTimeout = 9_000
const answerTimeout = 12_000
/** A batch not answered for so long may outlive the broker's memory of our sequences. */
const outcomeDeadline = 300_000
const firstWait = 20
const longestWait = 500
const complainAfter = 10_000
/** A topic whose limit was just raised may still refuse for so long. */
const limitPatience = 3_000
/** A larger request has more time, in bytes a ms: a slow line is not a dead one. */
const slowest = 1024

/** `messageBytes`: the largest batch the topics take. */
export function kafkaProducer(
  cluster: KafkaCluster,
  log: Logger,
  messageBytes: number = defaultMessageBytes,
): KafkaProducer {
  let producer: Producer | undefined
  let appending = false
  /** Why a leader did not take a batch, of the last sending. */
  let refusal: string | undefined
  const sequences = new Map<string, number>()
  /** The end each partition had when last known; never above the true one unless the log lost records. */
  const ends = new Map<string, number>()

  async function newProducer(signal: AbortSignal): Promise<Producer> {
    const node = await cluster.anyNode(signal)
    const answer = producerIdAnswer(await cluster.send(node, producerIdRequest(), answerTimeout, signal))
    if (answer.error !== 0) {
      if (!passes(answer.error)) throw unexpected(answer.error, 'a producer id')
      throw new Failure('SERVER_BUSY', { object: 'a producer id', observed: `Kafka error ${answer.error}` })
    }
    sequences.clear()
    return { id: answer.id, epoch: answer.epoch }
  }

  async function learnEnds(jobs: readonly Job[], signal: AbortSignal): Promise<void> {
    const unknown = jobs.filter((job) => !ends.has(job.name))
    if (unknown.length === 0) return
    const found = await listOffsets(
      cluster,
      unknown.map((job) => job.at),
      'end',
      signal,
    )
    for (const at of found) ends.set(partitionName(at), at.offset)
    const still = unknown.find((job) => !ends.has(job.name))
    if (still !== undefined) throw new Failure('SERVER_BUSY', { object: still.name, observed: 'no leader' })
  }

  function landed(job: Job, base: number): void {
    const [part] = job.parts
    if (part === undefined) return
    const known = ends.get(job.name) ?? 0
    if (base < known) {
      throw new Failure('LOG_GAP', {
        object: `topic ${job.at.topic}, partition ${job.at.partition}`,
        observed: `an append went to offset ${base}, but the partition reached to ${known} before`,
        effect: 'nothing more is published: acknowledged records are gone',
        next: 'A topic made anew or an unclean election: restore it, or copy again',
      })
    }
    ends.set(job.name, base + part.count)
    sequences.set(job.name, ((sequences.get(job.name) ?? 0) + part.count) & 0x7fff_ffff)
    job.parts.shift()
    job.stamped = undefined
    job.open = false
  }

  /** What became of a batch without an answer: it is in the log if its producer and sequence stand in the header of a batch after the known end. */
  async function settle(job: Job, signal: AbortSignal): Promise<void> {
    const { stamped } = job
    if (stamped === undefined || !job.open) return
    const sequence = sequences.get(job.name) ?? 0
    const [end] = await listOffsets(cluster, [job.at], 'end', signal)
    if (end === undefined) throw new Failure('SERVER_BUSY', { object: job.name, observed: 'no leader' })
    for (let next = ends.get(job.name) ?? 0; next < end.offset;) {
      const { topic, partition } = job.at
      const { answers, error } = await fetchSections(cluster, [{ topic, partition, offset: next }], 500, signal)
      const section = answers.find((answer) => answer.error === 0)?.section
      if (error !== undefined || section === undefined) {
        throw new Failure('SERVER_BUSY', { object: job.name, observed: 'its tail cannot be read at the moment' })
      }
      const before = next
      for (let at = 0; ;) {
        const size = batchSize(section, at)
        if (size === 0 || at + size > section.length) break
        const base = readOffset(section, at)
        const ours =
          section.readBigInt64BE(at + At.producerId) === stamped.id &&
          section.readInt16BE(at + At.producerEpoch) === stamped.epoch &&
          section.readInt32BE(at + At.sequence) === sequence
        if (ours) return landed(job, base)
        next = Math.max(next, base + section.readInt32BE(at + At.lastDelta) + 1)
        at += size
      }
      if (next === before) throw new Failure('SERVER_BUSY', { object: job.name, observed: 'its tail did not come' })
    }
    job.open = false
    job.stamped = undefined
  }

  /** Sends each job's first part once; true if all were answered for good, 'renew' if our identity is no longer accepted. */
  async function send(jobs: readonly Job[], signal: AbortSignal): Promise<'done' | 'again' | 'renew'> {
    let outcome: 'done' | 'again' | 'renew' = 'done'
    let failure: Error | undefined
    refusal = undefined
    const again = (): void => {
      if (outcome === 'done') outcome = 'again'
    }
    const answered = (job: Job, error: number, base: number): void => {
      if (error === 0 && base >= 0) landed(job, base)
      else if (error === 0 || error === KafkaError.duplicate) outcome = 'renew'
      else if (error === KafkaError.tooLarge || error === KafkaError.batchTooLarge) {
        const [part, ...rest] = job.parts
        if (part === undefined) return
        job.open = false
        if (part.count === 1) {
          if (performance.now() - job.since > limitPatience) throw refused(part)
          return again()
        }
        job.parts = [...splitBatch(part, messageBytes), ...rest]
        job.stamped = undefined
      } else if (
        error === KafkaError.sequence ||
        error === KafkaError.producerEpoch ||
        error === KafkaError.producerId ||
        error === KafkaError.fenced
      ) {
        outcome = 'renew'
      } else if (passes(error)) {
        const few = error === KafkaError.fewReplicas || error === KafkaError.fewReplicasAfter
        const why = few ? 'too few replicas are in sync: start the brokers that are down' : `Kafka error ${error}`
        refusal = `topic ${job.at.topic}, partition ${job.at.partition}: ${why}`
        again()
      } else throw unexpected(error, `topic ${job.at.topic}, partition ${job.at.partition}`)
    }
    const ask = async (leader: number, some: readonly Job[]): Promise<void> => {
      const parts = some.flatMap((job) => job.parts.slice(0, 1))
      for (const job of some) job.open = true
      try {
        const request = produceRequest(parts, brokerTimeout)
        const within = answerTimeout + Math.floor(request.body.length / slowest)
        const answer = await cluster.send(leader, request, within, signal)
        const byName = new Map(produceAnswer(answer).map((each) => [partitionName(each), each]))
        for (const job of some) {
          const each = byName.get(job.name)
          if (each === undefined) again()
          else answered(job, each.error, each.base)
        }
      } catch (error) {
        if (error instanceof Failure && error.policy !== 'retry') failure = error
        else if (error instanceof RangeError) failure = error
        again()
      }
    }
    const requests: Promise<void>[] = []
    for (const [leader, list] of Map.groupBy(jobs, (job) => cluster.leader(job.at))) {
      if (leader === undefined) again()
      else for (const some of portions(list)) requests.push(ask(leader, some))
    }
    await Promise.all(requests)
    signal.throwIfAborted()
    if (failure !== undefined) throw failure
    return outcome
  }

  async function run(jobs: readonly Job[], signal: AbortSignal): Promise<void> {
    let wait = firstWait
    let complained = performance.now()
    for (;;) {
      const left = jobs.filter((job) => job.parts.length > 0)
      if (left.length === 0) return
      let problem: unknown
      try {
        await cluster.learn(
          left.map((job) => job.at),
          signal,
        )
        await learnEnds(left, signal)
        const current = (producer ??= await newProducer(signal))
        for (const job of left) {
          const [part] = job.parts
          if (job.stamped !== undefined || part === undefined) continue
          stamp(part, current.id, current.epoch, sequences.get(job.name) ?? 0)
          job.stamped = current
          job.since = performance.now()
        }
        const before = left.map((job) => (ends.get(job.name) ?? 0) + (job.parts[0]?.count ?? 0))
        const outcome = await send(left, signal)
        // Somebody else's records lie between: a former holder's, or the topic is another one by now.
        if (left.some((job, i) => !job.open && (ends.get(job.name) ?? 0) > (before[i] ?? 0))) {
          await cluster.refresh([...new Set(left.map((job) => job.at.topic))], signal)
        }
        const late = left.some((job) => job.open && performance.now() - job.since > outcomeDeadline)
        if (outcome === 'renew' || late) {
          for (const job of left) if (job.parts.length > 0) await settle(job, signal)
          for (const job of left) job.stamped = undefined
          producer = undefined
          continue
        }
        if (outcome === 'done') continue
      } catch (error) {
        signal.throwIfAborted()
        if (!(error instanceof Failure) || error.policy !== 'retry') throw error
        problem = error
      }
      if (performance.now() - complained > complainAfter) {
        complained = performance.now()
        const observed = problem instanceof Failure ? problem.message : (refusal ?? 'there is no leader, or no answer')
        log.warn({ observed, partitions: left.length }, 'the change log does not take our records yet; trying on')
      }
      await sleep(wait, undefined, { signal })
      wait = Math.min(longestWait, wait * 2)
      try {
        await cluster.refresh([...new Set(left.map((job) => job.at.topic))], signal)
      } catch (error) {
        signal.throwIfAborted()
        if (!(error instanceof Failure) || error.policy !== 'retry') throw error
      }
    }
  }

  return {
    async append(round, signal) {
      signal.throwIfAborted()
      if (appending) throw new Failure('BUG', { observed: 'two appends at once' })
      if (new Set(round.map(partitionName)).size !== round.length)
        throw new Failure('BUG', { observed: 'two batches of one partition in a round' })
      if (round.length === 0) return []
      appending = true
      try {
        const jobs = round.map((at): Job => ({
          at,
          name: partitionName(at),
          parts: small(at, messageBytes),
          stamped: undefined,
          open: false,
          since: 0,
        }))
        await run(jobs, signal)
        return jobs.map(({ at, name }) => ({ topic: at.topic, partition: at.partition, offset: ends.get(name) ?? 0 }))
      } catch (error) {
        // Some of it may be in the log: whoever goes on does so under another identity.
        producer = undefined
        throw error
      } finally {
        appending = false
      }
    },
  }
}

/** What no topic of ours takes as one batch is split at once. */
function small(batch: EncodedBatch, messageBytes: number): EncodedBatch[] {
  if (batch.bytes.length <= messageBytes - batchMargin) return [batch]
  if (batch.count === 1) throw tooLarge(batch.topic, batch.bytes.length, messageBytes - batchMargin)
  return splitBatch(batch, messageBytes).flatMap((half) => small(half, messageBytes))
}

/** Within our limit, and the broker does not take it: its topic has another one. */
function refused({ topic, bytes }: EncodedBatch): Failure {
  return new Failure('RECORD_TOO_LARGE', {
    object: `topic ${topic}`,
    observed: `a record of ${bytes.length} bytes is refused by the broker, though log.maxMessageBytes allows it`,
    needed: 'max.message.bytes of the topic as crossfade set it',
    effect: 'it and what follows are not published, and stay at the source',
    next: 'Start again, which sets it anew; if that is not enough, raise message.max.bytes of the brokers',
  })
}

/** Jobs in requests a broker accepts. */
function portions(jobs: readonly Job[]): Job[][] {
  const all: Job[][] = [[]]
  let size = 0
  for (const job of jobs) {
    const more = asBuffer(job.parts[0]?.bytes ?? Buffer.alloc(0)).length
    if (size + more > requestBytes && size > 0) {
      all.push([])
      size = 0
    }
    all.at(-1)?.push(job)
    size += more
  }
  return all
}
