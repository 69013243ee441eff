import type { Logger } from '../logger.ts'
import type { TopicPartition } from '../model.ts'
import { setTimeout as sleep } from 'node:timers/promises'
import { Failure } from '../errors.ts'
import { partitionName, type Offset } from '../model.ts'
import type { ChangeLog } from './change-log.ts'
import type { KafkaAddress } from './kafka-client.ts'
import { kafkaCluster } from './kafka-cluster.ts'
import { kafkaFetcher, listOffsets } from './kafka-fetcher.ts'
import { kafkaProducer } from './kafka-producer.ts'
import { openTopics } from './kafka-topics.ts'

/** `replication`: copies of each partition of topics made by us; with 1 "acknowledged" means "survives the process". `retentionMs`: default seven days. */
type KafkaLogOptions = KafkaAddress & { readonly replication: number; readonly retentionMs?: number | undefined }

const firstAnswer = 10_000
const week = 7 * 24 * 3600 * 1000

/** SERVER_UNREACHABLE if no broker answers within ten seconds. Afterwards outages are waited out: each call goes on until its signal aborts. */
export async function openKafkaLog(options: KafkaLogOptions, log: Logger, signal: AbortSignal): Promise<ChangeLog> {
  const ids = new Map<string, string>()
  const main = kafkaCluster(options, ids)
  const writing = kafkaCluster(options, ids)
  const producer = kafkaProducer(writing, log)
  const fetcher = kafkaFetcher(() => kafkaCluster(options, ids), log)
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
    open: (topics, opening) =>
      openTopics(
        main,
        options,
        { replication: options.replication, retentionMs: options.retentionMs ?? week },
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
    async ends(partitions, asking) {
      asking.throwIfAborted()
      const ends = new Map<string, Offset>()
      while (ends.size < partitions.length) {
        const left: TopicPartition[] = partitions.filter((at) => !ends.has(partitionName(at)))
        try {
          for (const end of await listOffsets(main, left, 'end', asking)) ends.set(partitionName(end), end)
          if (ends.size === partitions.length) break
        } catch (error) {
          asking.throwIfAborted()
          if (!(error instanceof Failure) || error.policy !== 'retry') throw error
        }
        await sleep(100, undefined, { signal: asking })
        await main.refresh([...new Set(left.map((at) => at.topic))], asking).catch((error: unknown) => {
          if (!(error instanceof Failure) || error.policy !== 'retry') throw error
        })
      }
      return partitions.flatMap((at) => ends.get(partitionName(at)) ?? [])
    },
    async [Symbol.asyncDispose]() {
      close()
    },
  }
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
