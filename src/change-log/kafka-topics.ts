import { setTimeout as sleep } from 'node:timers/promises'
import kafkajs, { type Admin } from 'kafkajs'
import { asFailure, Failure } from '../errors.ts'
import { failpoint } from '../failpoint.ts'
import { keptBytes, type Topic } from './change-log.ts'
import { kafkaOf, type KafkaAddress } from './kafka-client.ts'
import { abortable, otherTopic, type KafkaCluster } from './kafka-cluster.ts'
import { alterTopicsAnswer, alterTopicsRequest, KafkaError, type Metadata } from './kafka-protocol.ts'

type TopicDefaults = { readonly replication: number; readonly retentionMs: number; readonly messageBytes: number }

/** Topics in one request to the broker. */
const atOnce = 200
const readyWithin = 60_000
const knownWithin = 5_000
const messageLimit = 'max.message.bytes'
const alterWithin = 15_000

/** Creates what is missing, waits until each partition has a leader, compares partitions, settings and ids, and raises the largest message of topics that were
 *  made for smaller ones. */
export async function openTopics(
  cluster: KafkaCluster,
  address: KafkaAddress,
  defaults: TopicDefaults,
  topics: readonly Topic[],
  signal: AbortSignal,
): Promise<void> {
  signal.throwIfAborted()
  if (topics.length === 0) return
  const missing = await missingTopics(cluster, topics, signal)
  const admin = kafkaOf(address).admin()
  try {
    await abortable(admin.connect(), signal)
    failpoint('log.before-topics')
    for (const some of portions(missing)) await create(admin, defaults, some, signal)
    failpoint('log.after-topics')
    await ready(cluster, topics, signal)
    for (const some of portions(topics)) {
      const small = await compare(admin, defaults, some, signal)
      if (small.length > 0) await raise(cluster, defaults, small, signal)
    }
  } catch (error) {
    signal.throwIfAborted()
    throw error instanceof Failure ? error : asKafkaFailure(error, address)
  } finally {
    admin.disconnect().catch(() => {})
  }
}

/** Those to be created. A broker that has just started may not know yet what there is: a topic that we made is gone only when it stays away. */
async function missingTopics(
  cluster: KafkaCluster,
  topics: readonly Topic[],
  signal: AbortSignal,
): Promise<readonly Topic[]> {
  const deadline = performance.now() + knownWithin
  for (;;) {
    const found = byName(
      await cluster.refresh(
        topics.map(({ name }) => name),
        signal,
      ),
    )
    const missing = topics.filter((topic) => (found.get(topic.name)?.error ?? KafkaError.unknownTopic) !== 0)
    const gone = missing.find(({ id }) => id !== undefined)
    if (gone === undefined) return missing
    if (performance.now() > deadline) throw otherTopic(gone.name, 'it no longer exists')
    await sleep(200, undefined, { signal })
  }
}

function settingsOf(topic: Topic, defaults: TopicDefaults): Record<string, string> {
  return {
    'cleanup.policy': topic.cleanup === 'compact' ? 'compact' : 'delete',
    [messageLimit]: String(defaults.messageBytes),
    // The source's clock must decide neither what retention removes nor whether a record is accepted.
    'message.timestamp.type': 'LogAppendTime',
    'min.insync.replicas': defaults.replication >= 3 ? '2' : '1',
    // A replica that was not in sync would become the log without what was acknowledged (H23).
    'unclean.leader.election.enable': 'false',
    ...retention(topic, defaults),
  }
}

/** Said in full, so that no default of the brokers removes what is not applied yet. */
function retention({ cleanup }: Topic, { retentionMs }: TopicDefaults): Record<string, string> {
  switch (cleanup) {
    case 'delete':
      return { 'retention.ms': String(retentionMs), 'retention.bytes': '-1' }
    case 'size':
      return { 'retention.ms': '-1', 'retention.bytes': String(keptBytes), 'segment.bytes': String(keptBytes / 4) }
    case 'compact':
      return {}
    default:
      return cleanup satisfies never
  }
}

async function create(
  admin: Admin,
  defaults: TopicDefaults,
  topics: readonly Topic[],
  signal: AbortSignal,
): Promise<void> {
  const request = {
    waitForLeaders: false,
    timeout: 15_000,
    topics: topics.map((topic) => ({
      topic: topic.name,
      numPartitions: topic.partitions,
      replicationFactor: defaults.replication,
      configEntries: Object.entries(settingsOf(topic, defaults)).map(([name, value]) => ({ name, value })),
    })),
  }
  try {
    // False: they exist by now; then the comparison decides.
    await abortable(admin.createTopics(request), signal)
  } catch (error) {
    signal.throwIfAborted()
    const errors: readonly unknown[] =
      error instanceof Error && 'errors' in error && Array.isArray(error.errors) ? error.errors : []
    const first = errors.find((each) => typeOf(each) !== 'TOPIC_ALREADY_EXISTS')
    if (first === undefined && errors.length > 0) return
    throw refusal(first ?? error, defaults)
  }
}

function refusal(error: unknown, { replication }: TopicDefaults): Failure {
  const topic = error instanceof Error && 'topic' in error ? `topic ${String(error.topic)}` : 'topics'
  const observed = error instanceof Error ? error.message : String(error)
  switch (typeOf(error)) {
    case 'INVALID_REPLICATION_FACTOR':
      return new Failure('CONFIG_INVALID', {
        object: topic,
        observed: `log.replication is ${replication}: ${observed}`,
        next: 'Lower log.replication, or start more brokers',
        cause: error,
      })
    case 'TOPIC_AUTHORIZATION_FAILED':
    case 'CLUSTER_AUTHORIZATION_FAILED':
      return new Failure('NO_RIGHTS', { object: topic, observed, next: 'Allow us to create topics', cause: error })
    case 'INVALID_TOPIC_EXCEPTION':
    case 'INVALID_PARTITIONS':
    case 'INVALID_CONFIG':
    case 'POLICY_VIOLATION':
      return new Failure('TOPIC_MISMATCH', {
        object: topic,
        observed: `it cannot be created: ${observed}`,
        cause: error,
      })
    default:
      return new Failure('SERVER_BUSY', { object: topic, observed: `it cannot be created: ${observed}`, cause: error })
  }
}

/** Creation returns before all partitions can be used. */
async function ready(cluster: KafkaCluster, topics: readonly Topic[], signal: AbortSignal): Promise<void> {
  const names = topics.map((topic) => topic.name)
  const deadline = performance.now() + readyWithin
  for (;;) {
    const found = byName(await cluster.refresh(names, signal))
    const waiting = topics.find((topic) => {
      const there = found.get(topic.name)
      return there === undefined || there.error !== 0 || there.partitions.some((each) => each.leader < 0)
    })
    if (waiting === undefined) {
      for (const topic of topics) {
        const there = found.get(topic.name)
        if (there === undefined) continue
        if (topic.id !== undefined && topic.id !== there.id)
          throw otherTopic(topic.name, 'it was deleted and made anew')
        if (there.partitions.length !== topic.partitions)
          throw mismatch(topic.name, [`${there.partitions.length} partitions`], [`${topic.partitions} partitions`])
      }
      return
    }
    if (performance.now() > deadline) {
      throw new Failure('SERVER_BUSY', { object: `topic ${waiting.name}`, observed: 'its partitions have no leaders' })
    }
    await sleep(50, undefined, { signal })
  }
}

/** Names of those whose only fault is that they take smaller messages than wanted. */
async function compare(
  admin: Admin,
  defaults: TopicDefaults,
  topics: readonly Topic[],
  signal: AbortSignal,
): Promise<readonly string[]> {
  const small: string[] = []
  const { resources } = await abortable(
    admin.describeConfigs({
      includeSynonyms: false,
      resources: topics.map(({ name }) => ({ type: kafkajs.ConfigResourceTypes.TOPIC, name })),
    }),
    signal,
  )
  for (const topic of topics) {
    const entries = resources.find((each) => each.resourceName === topic.name)?.configEntries ?? []
    const found = new Map(entries.map((entry) => [entry.configName, entry.configValue]))
    const wrong = Object.entries(settingsOf(topic, defaults)).filter(
      ([name, value]) => !suits(name, value, found.get(name)),
    )
    if (wrong.length === 1 && wrong[0]?.[0] === messageLimit) small.push(topic.name)
    else if (wrong.length > 0) {
      const needed = wrong.map(([name, value]) => `${name}=${value}`)
      throw mismatch(
        topic.name,
        wrong.map(([name]) => `${name}=${found.get(name) ?? '?'}`),
        needed,
        `kafka-configs.sh --alter --entity-type topics --entity-name ${topic.name} --add-config ${needed.join(',')}`,
      )
    }
  }
  return small
}

async function raise(
  cluster: KafkaCluster,
  { messageBytes }: TopicDefaults,
  topics: readonly string[],
  signal: AbortSignal,
): Promise<void> {
  const request = alterTopicsRequest(topics, messageLimit, String(messageBytes))
  const answer = alterTopicsAnswer(await cluster.send(await cluster.anyNode(signal), request, alterWithin, signal))
  const failed = answer.find(({ error }) => error !== 0)
  if (failed === undefined) return
  const denied = failed.error === KafkaError.topicRights || failed.error === KafkaError.clusterRights
  throw new Failure(denied ? 'NO_RIGHTS' : 'TOPIC_MISMATCH', {
    object: `topic ${failed.topic}`,
    key: 'log.maxMessageBytes',
    observed: `${messageLimit} cannot be raised to ${messageBytes}: ${failed.message || `Kafka error ${failed.error}`}`,
    needed: `${messageLimit}=${messageBytes}, as log.maxMessageBytes says`,
    next: denied
      ? `Allow AlterConfigs on topic ${failed.topic}, or set its ${messageLimit} by hand`
      : `Lower log.maxMessageBytes to what these brokers allow`,
  })
}

/** Sizes and times may be more generous than ours. */
function suits(name: string, wanted: string, found: string | undefined): boolean {
  if (found === wanted) return true
  if (name === 'retention.ms' || name === 'retention.bytes')
    return found === '-1' || (wanted !== '-1' && Number(found) >= Number(wanted))
  if (name === 'segment.bytes') return true
  if (name === messageLimit || name === 'min.insync.replicas') return Number(found) >= Number(wanted)
  return false
}

function mismatch(topic: string, observed: readonly string[], needed: readonly string[], next?: string): Failure {
  return new Failure('TOPIC_MISMATCH', {
    object: `topic ${topic}`,
    observed: observed.join(', '),
    needed: needed.join(', '),
    ...(next !== undefined && { next }),
  })
}

function asKafkaFailure(error: unknown, address: KafkaAddress): Failure {
  const name = error instanceof Error ? error.name : ''
  if (!name.startsWith('KafkaJS')) return asFailure(error)
  const observed = error instanceof Error ? error.message : String(error)
  const code = /SASL|AUTHORIZATION/i.test(`${name} ${observed}`) ? 'NO_RIGHTS' : 'SERVER_UNREACHABLE'
  return new Failure(code, { object: `Kafka at ${address.brokers.join(', ')}`, observed, cause: error })
}

function typeOf(error: unknown): unknown {
  return error instanceof Error && 'type' in error ? error.type : undefined
}

function byName(metadata: Metadata): Map<string, Metadata['topics'][number]> {
  return new Map(metadata.topics.map((topic) => [topic.name, topic]))
}

function portions<T>(all: readonly T[]): T[][] {
  return Array.from({ length: Math.ceil(all.length / atOnce) }, (_, i) => all.slice(i * atOnce, (i + 1) * atOnce))
}
