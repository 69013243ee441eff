import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ChangeLog } from '../../src/change-log/change-log.ts'
import { openKafkaLog } from '../../src/change-log/kafka-log.ts'
import { silent } from '../../src/logger.ts'
import type { TopicPartition } from '../../src/model.ts'
import { startKafka, type KafkaCluster } from '../support/kafka.ts'
import { batchOf, readAll, valuesOf } from './change-log.ts'

const partitions = 4
const never = new AbortController().signal
const ats = Array.from({ length: partitions }, (_, partition): TopicPartition => ({ topic: 'numbers', partition }))

/**
 * Appends rising numbers to some partitions and reads them at the same time while `hurt` hurts the brokers; then every number must be there once, in
 * order. `advance` resolves when fifty more rounds were acknowledged, and rejects when that takes too long.
 */
export async function appendsThroughOutages(
  nodes: 1 | 3,
  hurt: (cluster: KafkaCluster, advance: () => Promise<void>) => Promise<void>,
): Promise<void> {
  await using cluster = await startKafka({ nodes })
  await using log = await openKafkaLog(
    { brokers: cluster.brokers, clientId: 'test', replication: nodes },
    silent,
    never,
  )
  await log.open([{ name: 'numbers', partitions, cleanup: 'delete' }], never)
  const stop = new AbortController()
  let rounds = 0
  const writing = write(log, stop.signal, (done) => (rounds = done))
  const following = ats.map((at) => follow(log, at, stop.signal))
  const advance = async (): Promise<void> => {
    const goal = rounds + 50
    const deadline = Date.now() + 60_000
    while (rounds < goal) {
      assert.ok(Date.now() < deadline, `stuck at round ${rounds}`)
      await Promise.race([sleep(20), writing])
    }
  }
  await advance()
  await hurt(cluster, advance)
  stop.abort()
  const total = await writing
  const expected = Array.from({ length: 2 * total }, (_, i) => String(i))
  for (const at of ats) assert.deepEqual(await readAll(log, at), expected)
  for (const seen of await Promise.all(following)) assert.deepEqual(seen, expected.slice(0, seen.length))
}

/** Two numbers a round to each partition; resolves with the number of rounds, all acknowledged. */
async function write(log: ChangeLog, stop: AbortSignal, progress: (rounds: number) => void): Promise<number> {
  for (let round = 0; ; round++) {
    if (stop.aborted) return round
    const values = [String(2 * round), String(2 * round + 1)]
    const ends = await log.append(
      ats.map((at) => batchOf(at, values)),
      never,
    )
    assert.deepEqual(
      ends.map((each) => each.offset),
      ats.map(() => 2 * round + 2),
    )
    progress(round + 1)
    await sleep(5)
  }
}

async function follow(log: ChangeLog, at: TopicPartition, signal: AbortSignal): Promise<string[]> {
  const seen: string[] = []
  for (let offset = 0; !signal.aborted;) {
    for (const batch of await log.fetch([{ ...at, offset }], 300, never)) {
      seen.push(...valuesOf(batch))
      offset = batch.next
    }
  }
  return seen
}
