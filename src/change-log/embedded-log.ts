import { randomUUID } from 'node:crypto'
import { mkdir, readFile, realpath, rename } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Failure } from '../errors.ts'
import { failpoint } from '../failpoint.ts'
import { partitionName, type Offset, type TopicPartition } from '../model.ts'
import { arrivals, type Arrivals } from './arrivals.ts'
import { keptBytes, type ChangeLog, type EncodedBatch, type FetchedBatch, type Topic } from './change-log.ts'
import { errorCode, lockDirectory, syncDirectory, writeDurably, type DirectoryLock } from './directory-lock.ts'
import { openPartition, SyncError, type EmbeddedPartition } from './embedded-partition.ts'

/** What one process has open of a directory, however many logs it opened on it. */
type Core = {
  readonly dir: string
  readonly lock: DirectoryLock
  readonly news: Arrivals
  readonly topics: Map<string, Promise<Required<Topic> | undefined>>
  readonly partitions: Map<string, Promise<EmbeddedPartition>>
  /** Of topics that were opened: what goes in time. */
  readonly cleanups: Map<string, Topic['cleanup']>
  /** When it last went, in ms. */
  swept: number
  /** Appends of all logs, one after the other. */
  turn: Promise<unknown>
  users: number
  broken: Failure | undefined
}

const pullBytes = 4 * 1024 * 1024
const partitionBytes = 1024 * 1024
/** As in Kafka by default: what is older is removed, by whole segments, when the log is opened and now and then. */
const retentionMs = 7 * 24 * 3600 * 1000
const sweepEvery = 600_000
const cores = new Map<string, Promise<Core>>()

/**
 * The change log in files of one directory, for one process: the same record batches as in Kafka, synced before `append` resolves. Opened again in the
 * same process it is shared. LOG_IN_USE if another process has it. LOG_FULL without space: nothing of the round counts, and a repeat may succeed.
 */
export async function openEmbeddedLog(dir: string, signal: AbortSignal): Promise<ChangeLog> {
  signal.throwIfAborted()
  const key = await asked(dir, async () => {
    await mkdir(dir, { recursive: true })
    return await realpath(dir)
  })
  for (;;) {
    const opening = cores.get(key) ?? openCore(key)
    cores.set(key, opening)
    try {
      const core = await opening
      // Closed or broken while we waited: the next one is another.
      if (cores.get(key) !== opening) continue
      core.users++
      return logOf(core, key)
    } catch (error) {
      if (cores.get(key) === opening) cores.delete(key)
      throw error
    }
  }
}

async function openCore(dir: string): Promise<Core> {
  const lock = await asked(dir, async () => await lockDirectory(dir))
  return {
    dir,
    lock,
    news: arrivals(),
    topics: new Map(),
    partitions: new Map(),
    cleanups: new Map(),
    swept: performance.now(),
    turn: Promise.resolve(),
    users: 0,
    broken: undefined,
  }
}

function logOf(core: Core, key: string): ChangeLog {
  let closed = false
  let appending = false

  const check = (signal: AbortSignal): void => {
    signal.throwIfAborted()
    if (closed) throw new Failure('BUG', { observed: 'the log is closed' })
    if (core.broken !== undefined) throw core.broken
  }

  async function fetch(from: readonly Offset[], maxWait: number, signal: AbortSignal): Promise<FetchedBatch[]> {
    const deadline = performance.now() + maxWait
    const partitions = await Promise.all(from.map((at) => partitionOf(core, at)))
    for (;;) {
      check(signal)
      const pulled: FetchedBatch[] = []
      let bytes = 0
      // Begins anywhere, so that a busy partition does not keep the others waiting.
      const first = Math.floor(Math.random() * from.length)
      for (let i = 0; i < from.length && bytes < pullBytes; i++) {
        const at = (first + i) % from.length
        const batch = await partitions[at]?.read(from[at]?.offset ?? 0, partitionBytes)
        if (batch === undefined) continue
        pulled.push(batch)
        bytes += batch.bytes.length
      }
      const left = deadline - performance.now()
      if (pulled.length > 0 || left <= 0) return pulled
      await core.news.wait(left, signal)
    }
  }

  return {
    open: async (topics, signal) =>
      await asked(core.dir, async () => {
        check(signal)
        for (const { topic, there } of await findOrMake(core, topics)) {
          const { id = there.id } = topic
          // By age or by size is decided at each opening.
          const otherCleanup = (there.cleanup === 'compact') !== (topic.cleanup === 'compact')
          if (there.partitions !== topic.partitions || otherCleanup || there.id !== id) {
            throw new Failure('TOPIC_MISMATCH', {
              object: `topic ${topic.name} in ${core.dir}`,
              observed: `${there.partitions} partitions, ${there.cleanup}, id ${there.id}`,
              needed: `${topic.partitions} partitions, ${topic.cleanup}, id ${id}`,
              next: 'Delete the directory of the log, or change the pipeline name',
            })
          }
          for (let partition = 0; partition < topic.partitions; partition++) {
            const opened = await partitionOf(core, { topic: topic.name, partition })
            core.cleanups.set(topic.name, topic.cleanup)
            await forgetOld(opened, topic.cleanup)
          }
        }
      }),
    async topicIds(names, signal) {
      check(signal)
      return await asked(core.dir, async () => {
        const ids = new Map<string, string>()
        for (const name of names) {
          const topic = await topicOf(core, name)
          if (topic !== undefined) ids.set(name, topic.id)
        }
        return ids
      })
    },
    async append(round, signal) {
      check(signal)
      if (appending) throw new Failure('BUG', { observed: 'two appends at once' })
      if (new Set(round.map(partitionName)).size !== round.length)
        throw new Failure('BUG', { observed: 'two batches of one partition in a round' })
      if (round.length === 0) return []
      appending = true
      try {
        const mine = core.turn.then(() => {
          check(signal)
          return appendRound(core, key, round)
        })
        core.turn = mine.catch(() => {})
        return await mine
      } finally {
        appending = false
      }
    },
    async fetch(from, maxWait, signal) {
      check(signal)
      if (from.length > 0) return await asked(core.dir, async () => await fetch(from, maxWait, signal))
      await sleep(maxWait, undefined, { signal })
      return []
    },
    async ends(partitions, signal) {
      check(signal)
      const opened = await asked(
        core.dir,
        async () => await Promise.all(partitions.map(async (at) => await partitionOf(core, at))),
      )
      return partitions.map(({ topic, partition }, i) => ({ topic, partition, offset: opened[i]?.end ?? 0 }))
    },
    async lows(partitions, signal) {
      check(signal)
      const opened = await asked(
        core.dir,
        async () => await Promise.all(partitions.map(async (at) => await partitionOf(core, at))),
      )
      return partitions.map(({ topic, partition }, i) => ({ topic, partition, offset: opened[i]?.low ?? 0 }))
    },
    async [Symbol.asyncDispose]() {
      if (closed) return
      closed = true
      core.news.announce()
      core.users--
      if (core.users === 0) await closeCore(core, key)
    },
  }
}

async function closeCore(core: Core, key: string): Promise<void> {
  const mine = core.broken === undefined
  if (mine) cores.delete(key)
  await core.turn
  for (const opening of core.partitions.values()) {
    await opening.then(
      (partition) => partition.close(),
      () => {},
    )
  }
  if (mine) await core.lock.release().catch(() => {}) // that our process has ended says it too
}

/** Writes and syncs all, then shows all: in memory a round counts whole or not at all. */
async function appendRound(core: Core, key: string, round: readonly EncodedBatch[]): Promise<readonly Offset[]> {
  const partitions = await asked(core.dir, async () => {
    await core.lock.demand()
    return await Promise.all(round.map(async (at) => await partitionOf(core, at)))
  })
  const results = await Promise.allSettled(partitions.map(async (partition, i) => partition.write(batchAt(round, i))))
  const failed = results.find((result) => result.status === 'rejected')
  if (failed !== undefined) {
    for (const result of results) if (result.status === 'fulfilled') await result.value.undo()
    throw await asLogFailure(core, key, failed.reason)
  }
  failpoint('log.between-sync-and-answer')
  for (const result of results) if (result.status === 'fulfilled') result.value.commit()
  core.news.announce()
  if (performance.now() - core.swept > sweepEvery) {
    core.swept = performance.now()
    for (const [name, opening] of core.partitions) {
      // What cannot be removed now is tried again the next time.
      await forgetOld(await opening, core.cleanups.get(name.slice(0, name.lastIndexOf('/')))).catch(() => {})
    }
  }
  return round.map(({ topic, partition }, i) => ({ topic, partition, offset: partitions[i]?.end ?? 0 }))
}

async function forgetOld(partition: EmbeddedPartition, cleanup: Topic['cleanup'] | undefined): Promise<void> {
  if (cleanup === 'delete') await partition.forget(Date.now() - retentionMs, 0)
  if (cleanup === 'size') await partition.forget(Infinity, keptBytes)
}

function batchAt(round: readonly EncodedBatch[], i: number): EncodedBatch {
  const batch = round[i]
  if (batch === undefined) throw new RangeError(`batch ${i} of ${round.length}`)
  return batch
}

async function asLogFailure(core: Core, key: string, error: unknown): Promise<Failure> {
  if (error instanceof Failure) return error
  const cause = error instanceof SyncError ? error.cause : error
  const failure = diskFailure(core.dir, cause, 'nothing of this round counts as published')
  if (error instanceof SyncError && core.broken === undefined) {
    // What is on the disk is found out by reading it again: the next opening does, under a new epoch.
    core.broken = failure
    cores.delete(key)
    await core.lock.release().catch(() => {})
  }
  return failure
}

/** What the system refuses in a directory, in our words. */
async function asked<T>(dir: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    // An abort and a defect of ours have no code of the system.
    throw error instanceof Failure || !/^E[A-Z0-9]+$/.test(errorCode(error) ?? '') ? error : diskFailure(dir, error)
  }
}

function diskFailure(dir: string, error: unknown, effect?: string): Failure {
  const facts = {
    object: `change log in ${dir}`,
    observed: error instanceof Error ? error.message : String(error),
    ...(effect !== undefined && { effect }),
    cause: error,
  }
  switch (errorCode(error)) {
    case 'ENOSPC':
    case 'EDQUOT':
    case 'EFBIG':
      return new Failure('LOG_FULL', facts)
    case 'EACCES':
    case 'EPERM':
    case 'EROFS':
      return new Failure('NO_RIGHTS', {
        ...facts,
        next: 'Let this user write there, or name another folder in log.dir',
      })
    case 'ENOTDIR':
    case 'EEXIST':
      return new Failure('CONFIG_INVALID', { ...facts, next: 'Name a folder in log.dir' })
    default:
      return new Failure('LOG_DAMAGED', {
        ...facts,
        next: 'Look at the disk; the next start opens the log and checks it',
      })
  }
}

function partitionOf(core: Core, at: TopicPartition): Promise<EmbeddedPartition> {
  const name = partitionName(at)
  let opening = core.partitions.get(name)
  if (opening === undefined) {
    opening = openExisting(core, at)
    core.partitions.set(name, opening)
    opening.catch(() => core.partitions.delete(name))
  }
  return opening
}

async function openExisting(core: Core, at: TopicPartition): Promise<EmbeddedPartition> {
  const topic = await topicOf(core, at.topic)
  if (topic === undefined || at.partition >= topic.partitions) {
    throw new Failure('TOPIC_MISMATCH', {
      object: `topic ${at.topic}, partition ${at.partition} in ${core.dir}`,
      observed: 'it does not exist',
      needed: 'the topic that was recorded',
    })
  }
  return openPartition(topicDir(core, at.topic), at, core.lock.epoch)
}

function topicDir(core: Core, topic: string): string {
  return join(core.dir, 'topics', topic)
}

function topicOf(core: Core, name: string): Promise<Required<Topic> | undefined> {
  let reading = core.topics.get(name)
  if (reading === undefined) {
    reading = readTopic(core, name)
    core.topics.set(name, reading)
    reading.then(
      (topic) => topic === undefined && core.topics.delete(name),
      () => core.topics.delete(name),
    )
  }
  return reading
}

async function readTopic(core: Core, name: string): Promise<Required<Topic> | undefined> {
  if (!/^[A-Za-z0-9_-][A-Za-z0-9._-]*$/.test(name)) return undefined
  const path = join(topicDir(core, name), 'topic.json')
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return undefined
    throw error
  }
  const value: unknown = JSON.parse(text)
  if (
    typeof value === 'object' &&
    value !== null &&
    'partitions' in value &&
    'cleanup' in value &&
    'id' in value &&
    (value.cleanup === 'delete' || value.cleanup === 'size' || value.cleanup === 'compact')
  )
    return { name, partitions: Number(value.partitions), cleanup: value.cleanup, id: String(value.id) }
  throw new Failure('LOG_DAMAGED', { object: path, observed: 'not the description of a topic' })
}

/** Each topic as it is now. Made many at a time: the disk needs hardly more for them than for one. */
async function findOrMake(
  core: Core,
  topics: readonly Topic[],
): Promise<readonly { readonly topic: Topic; readonly there: Required<Topic> }[]> {
  const queue = topics.toReversed()
  let made = 0
  const some = async (): Promise<{ topic: Topic; there: Required<Topic> }[]> => {
    const found = []
    for (let topic = queue.pop(); topic !== undefined; topic = queue.pop()) {
      let there = await topicOf(core, topic.name)
      if (there === undefined) {
        there = await makeTopic(core, topic)
        made++
      }
      found.push({ topic, there })
    }
    return found
  }
  const all = await Promise.all(Array.from({ length: makers }, some))
  if (made > 0) for (const each of [join(core.dir, 'topics'), core.dir]) await syncDirectory(each)
  return all.flat()
}
const makers = 32

async function makeTopic(core: Core, topic: Topic): Promise<Required<Topic>> {
  if (topic.id !== undefined) {
    throw new Failure('TOPIC_MISMATCH', {
      object: `topic ${topic.name} in ${core.dir}`,
      observed: 'it does not exist',
      needed: `the one with id ${topic.id}`,
    })
  }
  const made = { name: topic.name, partitions: topic.partitions, cleanup: topic.cleanup, id: randomUUID() }
  const dir = topicDir(core, topic.name)
  await mkdir(dir, { recursive: true })
  const draft = join(dir, 'topic.json.draft')
  await writeDurably(draft, JSON.stringify(made))
  failpoint('log.before-topic')
  await rename(draft, join(dir, 'topic.json'))
  failpoint('log.after-topic')
  await syncDirectory(dir)
  core.topics.delete(topic.name)
  return made
}
