import { Failure } from '../errors.ts'
import { partitionName, type TopicPartition } from '../model.ts'
import { dialer, type KafkaAddress, type KafkaRequest, type Wire } from './kafka-client.ts'
import { KafkaError, metadataAnswer, metadataRequest, type BrokerAt, type Metadata } from './kafka-protocol.ts'

/** A set of connections of its own to a cluster, and what is known of who leads what. What breaks is dropped and dialled again when next needed. */
export interface KafkaCluster {
  /** Asks any broker that answers. SERVER_UNREACHABLE if none does; TOPIC_MISMATCH if a topic is another than before, or stays away. */
  refresh(topics: readonly string[], signal: AbortSignal): Promise<Metadata>
  /** As `refresh`, if something is unknown or what is known is old. */
  learn(partitions: readonly TopicPartition[], signal: AbortSignal): Promise<void>
  /** Node id; undefined where there is none at the moment. */
  leader(at: TopicPartition): number | undefined
  /** One request to a node. Rejects when the connection breaks, no answer comes in time, or none while the others count the node as gone: the outcome is
   *  unknown, and the connection is dropped. */
  send(node: number, request: KafkaRequest, timeout: number, signal: AbortSignal): Promise<Buffer>
  /** Any node that answers. */
  anyNode(signal: AbortSignal): Promise<number>
  close(): void
}

const metadataTimeout = 10_000
/** How long one broker may think about what another may know. */
const patienceOfOne = 2_000
/** Older knowledge is asked for again, so that a topic made anew is noticed. */
const metadataAge = 10_000
/** How long a topic may be unknown to the brokers: they learn of topics at different moments, also after a restart. */
const patience = 30_000

/** `ids`: of the topics as first seen, shared by all that belong to one log. */
export function kafkaCluster(address: KafkaAddress, ids: Map<string, string> = new Map()): KafkaCluster {
  const dial = dialer(address)
  const wires = new Map<string, Promise<Wire>>()
  const leaders = new Map<string, number>()
  const missingSince = new Map<string, number>()
  let brokers: readonly BrokerAt[] = []
  let learned = -Infinity
  let turn = Math.floor(Math.random() * address.brokers.length)
  let closed = false

  function wire(host: string, port: number): Promise<Wire> {
    if (closed) return Promise.reject(new Failure('BUG', { observed: 'the log is closed' }))
    const key = `${host}:${port}`
    let open = wires.get(key)
    if (open === undefined) {
      open = dial(host, port)
      wires.set(key, open)
      open.then(
        (made) => closed && made.destroy(),
        () => wires.get(key) === open && wires.delete(key),
      )
    }
    return open
  }

  async function exchange(host: string, port: number, request: KafkaRequest, timeout: number): Promise<Buffer> {
    const key = `${host}:${port}`
    const opening = wire(host, port)
    const open = await opening
    try {
      return await open.send(request, timeout)
    } catch (error) {
      if (wires.get(key) === opening) wires.delete(key)
      open.destroy()
      throw unreachable(key, error)
    }
  }

  /** Known nodes first with an open connection, then the addresses given. */
  function candidates(): [string, number][] {
    const known = brokers.map(({ host, port }): [string, number] => [host, port])
    const given = address.brokers.map((each): [string, number] => {
      const colon = each.lastIndexOf(':')
      return [each.slice(0, colon), Number(each.slice(colon + 1))]
    })
    turn++
    const rotated = [...known, ...given]
      .map((_, i, all) => all[(i + turn) % all.length])
      .filter((each) => each !== undefined)
    const isOpen = ([host, port]: [string, number]): boolean => wires.has(`${host}:${port}`)
    const ordered = [...rotated.filter(isOpen), ...rotated.filter((each) => !isOpen(each))]
    return [...new Map(ordered.map((each) => [each.join(':'), each])).values()]
  }

  /** The first answer of any. A broker that is frozen says nothing: the next is asked beside it, and who leads now is known before it is given up. */
  async function ask(topics: readonly string[], signal: AbortSignal): Promise<Metadata> {
    let last: Failure | undefined
    const answer = Promise.withResolvers<Metadata>()
    const attempts: Promise<void>[] = []
    for (const [host, port] of candidates()) {
      const attempt = exchange(host, port, metadataRequest(topics), metadataTimeout)
        .then(metadataAnswer)
        .then(answer.resolve, (error: unknown) => {
          if (error instanceof Failure && error.code === 'NO_RIGHTS') answer.reject(error)
          last = error instanceof Failure ? error : unreachable(`${host}:${port}`, error)
        })
      attempts.push(attempt)
      const found = await abortable(Promise.race([answer.promise, soon(attempt)]), signal)
      if (found !== undefined) return found
    }
    const found = await abortable(Promise.race([answer.promise, Promise.all(attempts)]), signal)
    if (!Array.isArray(found)) return found
    throw new Failure('SERVER_UNREACHABLE', {
      object: `Kafka at ${address.brokers.join(', ')}`,
      observed: last?.facts.observed ?? 'no broker is named',
      next: 'Check log.brokers, the network, and that the brokers run',
      cause: last,
    })
  }

  /** A frozen node answers nobody, and its partitions have other leaders long before its time is over. */
  async function unlessGone(
    { id, host, port }: BrokerAt,
    answer: Promise<Buffer>,
    signal: AbortSignal,
  ): Promise<Buffer> {
    let answered = false
    const done = answer.then(
      () => void (answered = true),
      () => void (answered = true),
    )
    for (;;) {
      await soon(done)
      if (answered || closed || signal.aborted) return answer
      const named = await ask([], signal).catch(() => undefined)
      if (answered || named === undefined || named.brokers.some((each) => each.id === id)) continue
      const key = `${host}:${port}`
      const silent = wires.get(key)
      wires.delete(key)
      silent?.then(
        (made) => made.destroy(),
        () => {},
      )
      throw unreachable(key, new Error('it is silent, and the others no longer name it'))
    }
  }

  function keep(metadata: Metadata): void {
    brokers = metadata.brokers
    learned = performance.now()
    for (const topic of metadata.topics) {
      if (topic.error === KafkaError.unknownTopic) {
        if (!ids.has(topic.name)) continue
        const since = missingSince.get(topic.name) ?? performance.now()
        missingSince.set(topic.name, since)
        if (performance.now() - since > patience) throw otherTopic(topic.name, 'it no longer exists')
        continue
      }
      if (topic.error === KafkaError.topicRights) {
        throw new Failure('NO_RIGHTS', { object: `topic ${topic.name}`, observed: 'Kafka refuses to describe it' })
      }
      if (topic.error !== 0) continue
      missingSince.delete(topic.name)
      const before = ids.get(topic.name)
      if (before !== undefined && before !== topic.id) throw otherTopic(topic.name, 'it was deleted and made anew')
      ids.set(topic.name, topic.id)
      for (const { partition, leader } of topic.partitions) {
        const name = partitionName({ topic: topic.name, partition })
        if (leader < 0) leaders.delete(name)
        else leaders.set(name, leader)
      }
    }
  }

  return {
    async refresh(topics, signal) {
      const metadata = await ask(topics, signal)
      keep(metadata)
      return metadata
    },
    async learn(partitions, signal) {
      const old = performance.now() - learned > metadataAge
      if (!old && partitions.every((at) => leaders.has(partitionName(at)))) return
      const topics = new Set(partitions.map((at) => at.topic))
      if (old) for (const topic of ids.keys()) topics.add(topic)
      keep(await ask([...topics], signal))
    },
    leader: (at) => leaders.get(partitionName(at)),
    async send(node, request, timeout, signal) {
      const broker = brokers.find((each) => each.id === node)
      if (broker === undefined) throw unreachable(`node ${node}`, new Error('it is not known'))
      const answer = exchange(broker.host, broker.port, request, timeout)
      return abortable(unlessGone(broker, answer, signal), signal)
    },
    async anyNode(signal) {
      if (brokers.length === 0) keep(await ask([], signal))
      const broker = brokers[turn++ % Math.max(1, brokers.length)]
      if (broker === undefined) throw unreachable('any', new Error('the cluster names no broker'))
      return broker.id
    },
    close() {
      closed = true
      for (const open of wires.values()) {
        open.then(
          (made) => made.destroy(),
          () => {},
        )
      }
      wires.clear()
    },
  }
}

/** Resolves when `work` has ended, and after a while in any case. */
async function soon(work: Promise<void>): Promise<undefined> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, patienceOfOne)
  })
  await Promise.race([work, late])
  clearTimeout(timer)
}

function unreachable(broker: string, error: unknown): Failure {
  if (error instanceof Failure) return error
  return new Failure('SERVER_UNREACHABLE', {
    object: `Kafka broker ${broker}`,
    observed: error instanceof Error ? error.message : String(error),
    cause: error,
  })
}

export function otherTopic(topic: string, observed: string): Failure {
  return new Failure('TOPIC_MISMATCH', {
    object: `topic ${topic}`,
    observed,
    needed: 'the topic that was recorded',
    effect: 'nothing more is read from it or written to it',
    next: 'Restore the topic, or start a new pipeline',
  })
}

/** Rejects at once when `signal` aborts; `work` goes on by itself. */
export async function abortable<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  if (signal.aborted) {
    work.catch(() => {})
    throw signal.reason
  }
  let aborted: (() => void) | undefined
  const stopped = new Promise<never>((_, reject) => {
    aborted = () => reject(signal.reason)
    signal.addEventListener('abort', aborted, { once: true })
  })
  work.catch(() => {}) // reported by the race, unless it lost
  try {
    return await Promise.race([work, stopped])
  } finally {
    if (aborted) signal.removeEventListener('abort', aborted)
  }
}
