import type { Logger } from '../logger.ts'
import type { TopicPartition } from '../model.ts'
import { setTimeout as sleep } from 'node:timers/promises'
import { Failure } from '../errors.ts'
import { partitionName, type Offset } from '../model.ts'
import { defaultMessageBytes } from './batch-layout.ts'
import type { ChangeLog } from './change-log.ts'
import { checkBrokers } from './kafka-check.ts'
import type { KafkaAddress } from './kafka-client.ts'
import { kafkaCluster, type KafkaCluster } from './kafka-cluster.ts'
import { kafkaFetcher, listOffsets } from './kafka-fetcher.ts'
import { kafkaProducer } from './kafka-producer.ts'
import { openTopics } from './kafka-topics.ts'

/** `replication`: copies of each partition of topics made by us; with 1 "acknowledged" means "survives the process". `retentionMs`: default seven days.
 *  `maxMessageBytes`: the largest record batch, compressed; default 8 MiB. */
type KafkaLogOptions = KafkaAddress & {
  readonly replication: number
  readonly retentionMs?: number | undefined
  readonly maxMessageBytes?: number | undefined
}

const firstAnswer = 10_000
const week = 7 * 24 * 3600 * 1000

/** SERVER_UNREACHABLE if no broker answers within ten seconds. Afterwards outages are waited out: each call goes on until its signal aborts. */
export async function openKafkaLog(options: KafkaLogOptions, log: Logger, signal: AbortSignal): Promise<ChangeLog> {
  const ids = new Map<string, string>()
  const messageBytes = options.maxMessageBytes ?? defaultMessageBytes
  const main = kafkaCluster(options, ids)
  const writing = kafkaCluster(options, ids)
  const producer = kafkaProducer(writing, log, messageBytes)
  const fetcher = kafkaFetcher(() => kafkaCluster(options, ids), log, messageBytes)
  const close = (): void => {
    main.close()
    writing.close()
    fetcher.close()
  }
  try {
    await reach(() => main.refresh([], signal), signal)
  } catch (error) {
    close()
    throw error
  }
  return {
    check: async (asking) => await checkBrokers(main, options, messageBytes, asking),
    open: (topics, opening) =>
      openTopics(
        main,
        options,
        { replication: options.replication, retentionMs: options.retentionMs ?? week, messageBytes },
        topics,
        opening,
      ),
    async topicIds(names, asking) {
      const { topics } = await main.refresh(names, asking)
      return new Map(
        topics
          .filter((topic) => topic.error === 0 && names.includes(topic.name))
          .map((topic) => [topic.name, topic.id]),
      )
    },
    append: (round, appending) => producer.append(round, appending),
    fetch: (from, maxWait, fetching) => fetcher.fetch(from, maxWait, fetching),
    ends: (partitions, asking) => offsetsOf(main, partitions, 'end', asking),
    lows: (partitions, asking) => offsetsOf(main, partitions, 'low', asking),
    async [Symbol.asyncDispose]() {
      close()
    },
  }
}

/** Asks until each partition's leader has told. */
async function offsetsOf(
  cluster: KafkaCluster,
  partitions: readonly TopicPartition[],
  which: 'low' | 'end',
  signal: AbortSignal,
): Promise<readonly Offset[]> {
  signal.throwIfAborted()
  const found = new Map<string, Offset>()
  while (found.size < partitions.length) {
    const left = partitions.filter((at) => !found.has(partitionName(at)))
    try {
      for (const at of await listOffsets(cluster, left, which, signal)) found.set(partitionName(at), at)
      if (found.size === partitions.length) break
    } catch (error) {
      signal.throwIfAborted()
      if (!(error instanceof Failure) || error.policy !== 'retry') throw error
    }
    await sleep(100, undefined, { signal })
    await cluster.refresh([...new Set(left.map((at) => at.topic))], signal).catch((error: unknown) => {
      if (!(error instanceof Failure) || error.policy !== 'retry') throw error
    })
  }
  return partitions.flatMap((at) => found.get(partitionName(at)) ?? [])
}

/** A broker that is just starting is given a moment. */
async function reach(ask: () => Promise<unknown>, signal: AbortSignal): Promise<void> {
  const deadline = performance.now() + firstAnswer
  for (;;) {
    try {
      await ask()
      return
    } catch (error) {
      signal.throwIfAborted()
      if (!(error instanceof Failure) || error.policy !== 'retry' || performance.now() > deadline) throw error
    }
    await sleep(200, undefined, { signal })
  }
}
