import { setTimeout as sleep } from 'node:timers/promises'
import { Failure } from '../errors.ts'
import type { Logger } from '../logger.ts'
import type { Offset } from '../model.ts'
import type { FetchedBatch } from './change-log.ts'
import { abortable, type KafkaCluster } from './kafka-cluster.ts'
import {
  fetchAnswer,
  fetchRequest,
  KafkaError,
  offsetsAnswer,
  offsetsRequest,
  passes,
  type FetchAnswer,
} from './kafka-protocol.ts'
import { defaultMessageBytes, largestDecompressed } from './batch-layout.ts'
import { damaged, logGap, readBatches } from './read-batches.ts'

/** What one pull brings at most, in all and of a partition; a single larger batch comes whole. Compressed; uncompressed it may be many times as much,
 *  up to `room` and one batch, for each lane: the rest of an answer is asked for again. */
const pullBytes = 512 * 1024
const partitionBytes = 256 * 1024
const room = 16 * 1024 * 1024
/** With several leaders each is asked for this long, so that one with data is not held up by those without. */
const turnWait = 100
const retryWait = 100
const grace = 10_000
const complainAfter = 10_000
/** A batch as large as the topics take has more time, in bytes a ms: a slow line is not a dead one. */
const slowest = 4096

/** Reads at explicit offsets. `fetch` may be called side by side: each call under way has connections of its own, because a broker answers a
 *  connection in order. */
interface KafkaFetcher {
  fetch(from: readonly Offset[], maxWait: number, signal: AbortSignal): Promise<readonly FetchedBatch[]>
  close(): void
}

/** `stale`: a leader did not answer as one, so who leads is asked for again before the next question. */
type Lane = { readonly cluster: KafkaCluster; busy: boolean; stale: boolean }

/** `messageBytes`: the largest batch the topics take. */
export function kafkaFetcher(
  open: () => KafkaCluster,
  log: Logger,
  messageBytes: number = defaultMessageBytes,
): KafkaFetcher {
  const lanes: Lane[] = []
  let failingSince: number | undefined
  let closed = false

  function failed(error: unknown): void {
    failingSince ??= performance.now()
    if (performance.now() - failingSince < complainAfter) return
    failingSince = undefined
    const observed = error instanceof Error ? error.message : String(error)
    log.warn({ observed }, 'the change log cannot be read for the moment; trying on')
  }

  async function pull(
    lane: Lane,
    from: readonly Offset[],
    maxWait: number,
    signal: AbortSignal,
  ): Promise<readonly FetchedBatch[]> {
    const { cluster } = lane
    const deadline = performance.now() + maxWait
    for (;;) {
      const left = Math.max(0, deadline - performance.now())
      try {
        if (lane.stale) await cluster.refresh([...new Set(from.map((at) => at.topic))], signal)
        else await cluster.learn(from, signal)
        const { answers, error } = await fetchSections(cluster, from, left, signal, Math.floor(messageBytes / slowest))
        const lost = answers.find((answer) => answer.error === KafkaError.outOfRange)
        if (lost !== undefined) throw await gap(cluster, from, lost, signal)
        const problem = answers.find((answer) => answer.error !== 0)
        lane.stale = problem !== undefined || error !== undefined
        if (!lane.stale) failingSince = undefined
        const pulled = read(from, answers, largestDecompressed(messageBytes))
        if (pulled.length > 0) return pulled
        if (lane.stale) {
          failed(error ?? `Kafka error ${problem?.error} for topic ${problem?.topic}`)
          await sleep(Math.min(retryWait, left), undefined, { signal })
        }
      } catch (error) {
        signal.throwIfAborted()
        if (closed || !(error instanceof Failure) || error.policy !== 'retry') throw error
        failed(error)
        await sleep(Math.min(retryWait, Math.max(0, deadline - performance.now())), undefined, { signal })
      }
      if (performance.now() >= deadline) return []
    }
  }

  return {
    async fetch(from, maxWait, signal) {
      signal.throwIfAborted()
      if (from.length === 0) {
        await sleep(maxWait, undefined, { signal })
        return []
      }
      let lane = lanes.find((each) => !each.busy)
      if (lane === undefined) lanes.push((lane = { cluster: open(), busy: true, stale: false }))
      const mine = lane
      mine.busy = true
      // An aborted pull keeps its connection until the broker has answered.
      const work = pull(mine, from, maxWait, signal).finally(() => {
        mine.busy = false
      })
      return abortable(work, signal)
    },
    close() {
      closed = true
      for (const lane of lanes) lane.cluster.close()
    },
  }
}

/** One question to each leader. `error`: one of them gave no answer. `more`: ms beyond what a small answer is given. */
export async function fetchSections(
  cluster: KafkaCluster,
  from: readonly Offset[],
  maxWait: number,
  signal: AbortSignal,
  more = 0,
): Promise<{ readonly answers: readonly FetchAnswer[]; readonly error: unknown }> {
  const byLeader = Map.groupBy(from, (at) => cluster.leader(at))
  const wait = Math.floor(byLeader.size > 1 ? Math.min(maxWait, turnWait) : maxWait)
  const answers: FetchAnswer[] = []
  let error: unknown
  await Promise.all(
    [...byLeader].map(async ([leader, wanted]) => {
      try {
        if (leader === undefined)
          throw new Failure('SERVER_BUSY', { object: `topic ${wanted[0]?.topic}`, observed: 'no leader' })
        // A broker fills the answer in the order asked for: begin anywhere, so that a busy partition does not starve the others.
        const first = Math.floor(Math.random() * wanted.length)
        const turned = [...wanted.slice(first), ...wanted.slice(0, first)]
        const request = fetchRequest(turned, wait, pullBytes, partitionBytes)
        const answer = fetchAnswer(await cluster.send(leader, request, wait + grace + more, signal))
        if (answer.error !== 0)
          throw new Failure('SERVER_BUSY', { observed: `Kafka error ${answer.error} for a fetch` })
        answers.push(...answer.partitions)
      } catch (failure) {
        error = failure
      }
    }),
  )
  signal.throwIfAborted()
  if (error instanceof Failure && error.policy !== 'retry') throw error
  return { answers, error }
}

/** Offsets by partition; of those whose leader cannot tell at the moment none. */
export async function listOffsets(
  cluster: KafkaCluster,
  wanted: readonly { readonly topic: string; readonly partition: number }[],
  from: 'low' | 'end',
  signal: AbortSignal,
): Promise<readonly Offset[]> {
  await cluster.learn(wanted, signal)
  const found: Offset[] = []
  for (const [leader, list] of Map.groupBy(wanted, (at) => cluster.leader(at))) {
    if (leader === undefined) continue
    const answer = offsetsAnswer(await cluster.send(leader, offsetsRequest(list, from), grace, signal))
    for (const { topic, partition, offset, error } of answer) {
      if (error === 0) found.push({ topic, partition, offset })
      else if (!passes(error)) throw unexpected(error, `topic ${topic}, partition ${partition}`)
    }
  }
  return found
}

export function unexpected(error: number, object: string): Failure {
  if (error === KafkaError.topicRights || error === KafkaError.clusterRights) {
    return new Failure('NO_RIGHTS', { object, observed: `Kafka refuses with error ${error}` })
  }
  return new Failure('UNSUPPORTED', {
    object,
    observed: `Kafka answers with error ${error}`,
    next: 'Look it up at https://kafka.apache.org/protocol#protocol_error_codes and in the broker’s log',
  })
}

function read(from: readonly Offset[], answers: readonly FetchAnswer[], largest: number): FetchedBatch[] {
  const pulled: FetchedBatch[] = []
  let left = room
  for (const answer of answers) {
    if (answer.error !== 0) {
      if (answer.error !== KafkaError.outOfRange && !passes(answer.error))
        throw unexpected(answer.error, `topic ${answer.topic}, partition ${answer.partition}`)
      continue
    }
    if (answer.section.length === 0 || left <= 0) continue
    const at = from.find((each) => each.partition === answer.partition && each.topic === answer.topic)
    if (at === undefined) continue
    const batch = readBatches(at, answer.section, at.offset, answer.end, { batch: largest, room: left })
    // The first batch always comes whole, and a broker sends none that is past.
    if (batch.next === at.offset) throw damaged(at, at.offset, 'the broker sends no whole record batch')
    left -= batch.bytes.length
    pulled.push(batch)
  }
  return pulled
}

async function gap(
  cluster: KafkaCluster,
  from: readonly Offset[],
  { topic, partition }: FetchAnswer,
  signal: AbortSignal,
): Promise<Failure> {
  const at = { topic, partition }
  const low = (await listOffsets(cluster, [at], 'low', signal))[0]?.offset
  const end = (await listOffsets(cluster, [at], 'end', signal))[0]?.offset
  const wanted = from.find((each) => each.partition === partition && each.topic === topic)?.offset
  return logGap(at, wanted ?? 0, low, end)
}
