import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ChangeLog } from '../../../src/change-log/change-log.ts'
import { openKafkaLog } from '../../../src/change-log/kafka-log.ts'
import { silent } from '../../../src/logger.ts'
import type { TopicPartition } from '../../../src/model.ts'
import { batchOf, readAll, valuesOf } from '../../conformance/change-log.ts'
import { startKafka } from '../../support/kafka.ts'
import { needs } from '../../support/servers.ts'

const partitions = 4
const never = new AbortController().signal
const ats = Array.from({ length: partitions }, (_, partition): TopicPartition => ({ topic: 'numbers', partition }))

/** Appends rising numbers to all partitions until stopped; returns how many rounds were acknowledged. */
async function write(log: ChangeLog, stop: AbortSignal, progress: (rounds: number) => void): Promise<number> {
  for (let round = 0; ; round++) {
    if (stop.aborted) return round
    const ends = await log.append(
      ats.map((at) => batchOf(at, [String(2 * round), String(2 * round + 1)])),
      never,
    )
    assert.deepEqual(
      ends.map((each) => each.offset),
      ats.map(() => 2 * round + 2),
    )
    progress(round + 1)
  }
}

/** Reads one partition until stopped, beside the writing. */
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

describe('Kafka stopped and started again', { skip: needs('kafka').skip }, () => {
  for (const [name, nodes] of [
    ['killed three times', 1],
    ['frozen for longer than a request may take', 1],
  ] as const) {
    test(`a broker ${name} while appending: every record once, in order`, async () => {
      await using cluster = await startKafka({ nodes })
      const options = { brokers: cluster.brokers, clientId: 'test', replication: 1 }
      await using log = await openKafkaLog(options, silent, never)
      await log.open([{ name: 'numbers', partitions, cleanup: 'delete' }], never)
      const stop = new AbortController()
      let rounds = 0
      const writing = write(log, stop.signal, (done) => (rounds = done))
      const following = ats.map((at) => follow(log, at, stop.signal))
      const advance = async (): Promise<void> => {
        const goal = rounds + 50
        const deadline = Date.now() + 45_000
        while (rounds < goal) {
          assert.ok(Date.now() < deadline, `stuck at round ${rounds}`)
          await Promise.race([sleep(20), writing])
        }
      }
      await advance()
      if (name.startsWith('killed')) {
        for (let time = 0; time < 3; time++) {
          await cluster.kill9()
          await cluster.restart()
          await advance()
        }
      } else {
        cluster.pause(1)
        await sleep(14_000) // longer than a request may take: it is given up, and the broker finds it and its repetition
        cluster.resume(1)
        await advance()
      }
      stop.abort()
      const total = await writing
      const expected = Array.from({ length: 2 * total }, (_, i) => String(i))
      for (const at of ats) assert.deepEqual(await readAll(log, at), expected)
      for (const seen of await Promise.all(following)) assert.deepEqual(seen, expected.slice(0, seen.length))
    })
  }
})
