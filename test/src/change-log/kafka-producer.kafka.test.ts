import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { describe, test } from 'node:test'
import kafkajs from 'kafkajs'
import type { EncodedBatch, Topic } from '../../../src/change-log/change-log.ts'
import type { KafkaRequest } from '../../../src/change-log/kafka-client.ts'
import { kafkaCluster, type KafkaCluster } from '../../../src/change-log/kafka-cluster.ts'
import { openKafkaLog } from '../../../src/change-log/kafka-log.ts'
import { kafkaProducer } from '../../../src/change-log/kafka-producer.ts'
import type { Finding } from '../../../src/connector.ts'
import { Failure } from '../../../src/errors.ts'
import { silent } from '../../../src/logger.ts'
import { batchOf, readAll } from '../../conformance/change-log.ts'
import { kafka, needs } from '../../support/servers.ts'

const never = new AbortController().signal
const skip = needs('kafka').skip
const { brokers, prefix } = skip ? { brokers: [], prefix: '' } : await kafka()
const address = { brokers, clientId: 'test' }
const topicName = `${prefix}produced`
const partitions = 3
const produceKey = 0

/** What happens to one produce request: passed on, or not, and the answer kept, lost, or given another error. */
type Fate = { readonly forward: boolean; readonly answer: 'kept' | 'lost' | number }

/** The real cluster, with mishaps between it and the producer. `sent`: every produce request. */
function mishaps(cluster: KafkaCluster, fates: Fate[], sent: Buffer[]): KafkaCluster {
  return {
    ...cluster,
    async send(node, request: KafkaRequest, timeout, signal) {
      if (request.key !== produceKey) return cluster.send(node, request, timeout, signal)
      sent.push(request.body)
      const fate = fates.shift() ?? { forward: true, answer: 'kept' }
      const real = fate.forward ? await cluster.send(node, request, timeout, signal) : undefined
      if (fate.answer === 'lost') throw new Failure('SERVER_UNREACHABLE', { observed: 'answer lost' })
      if (fate.answer === 'kept') return real ?? Buffer.alloc(0)
      return errorAnswer(fate.answer)
    },
  }
}
function errorAnswer(error: number): Buffer {
  const name = Buffer.from(topicName)
  const answer = Buffer.alloc(4 + 2 + name.length + 4 + 30 + 4)
  answer.writeInt32BE(1)
  answer.writeInt16BE(name.length, 4)
  name.copy(answer, 6)
  const at = 6 + name.length
  answer.writeInt32BE(1, at)
  answer.writeInt32BE(0, at + 4)
  answer.writeInt16BE(error, at + 8)
  answer.fill(0xff, at + 10, at + 34)
  return answer
}

describe('Kafka producer', { skip }, () => {
  const at = { topic: topicName, partition: 0 }
  const other = { topic: topicName, partition: 1 }

  async function under(fates: Fate[], run: (append: (...round: EncodedBatch[]) => Promise<number[]>) => Promise<void>) {
    await using log = await openKafkaLog({ ...address, replication: 1 }, silent, never)
    await log.open([{ name: topicName, partitions, cleanup: 'delete' }], never)
    const from = await log.ends([at, other], never)
    const cluster = kafkaCluster(address)
    const sent: Buffer[] = []
    try {
      const producer = kafkaProducer(mishaps(cluster, fates, sent), silent)
      await run(async (...round) => (await producer.append(round, never)).map((each) => each.offset))
    } finally {
      cluster.close()
    }
    assert.equal(fates.length, 0)
    return {
      kept: await readAll(log, at, from[0]?.offset),
      other: await readAll(log, other, from[1]?.offset),
      sent,
    }
  }

  test('a lost answer: identical bytes are resent, and the record is there once', async () => {
    const { kept, sent } = await under(
      [
        { forward: true, answer: 'kept' },
        { forward: true, answer: 'lost' },
      ],
      async (append) => {
        await append(batchOf(at, ['a']))
        const [end = 0] = await append(batchOf(at, ['b', 'c']))
        assert.deepEqual(await append(batchOf(at, ['d'])), [end + 1])
      },
    )
    assert.deepEqual(kept, ['a', 'b', 'c', 'd'])
    assert.deepEqual(sent[1], sent[2])
  })

  test('a lost request is sent again', async () => {
    const { kept } = await under(
      [
        { forward: false, answer: 'lost' },
        { forward: false, answer: 6 },
        { forward: false, answer: 19 },
      ],
      async (append) => {
        await append(batchOf(at, ['a']))
        await append(batchOf(at, ['b']))
      },
    )
    assert.deepEqual(kept, ['a', 'b'])
  })

  for (const error of [45, 46, 47, 59]) {
    test(`error ${error} for a batch that is in the log: found in the tail, not sent twice`, async () => {
      const { kept, other: second } = await under(
        [
          { forward: true, answer: 'kept' },
          { forward: true, answer: error },
        ],
        async (append) => {
          await append(batchOf(at, ['a']), batchOf(other, ['x']))
          const [end = 0] = await append(batchOf(at, ['b', 'c']))
          assert.deepEqual(await append(batchOf(at, ['d']), batchOf(other, ['y'])).then((ends) => ends[0]), end + 1)
        },
      )
      assert.deepEqual(kept, ['a', 'b', 'c', 'd'])
      assert.deepEqual(second, ['x', 'y'])
    })

    test(`error ${error} for a batch that is not in the log: sent under a new producer id`, async () => {
      const { kept } = await under(
        [
          { forward: true, answer: 'kept' },
          { forward: false, answer: error },
        ],
        async (append) => {
          await append(batchOf(at, ['a']))
          await append(batchOf(at, ['b', 'c']))
          await append(batchOf(at, ['d']))
        },
      )
      assert.deepEqual(kept, ['a', 'b', 'c', 'd'])
    })
  }

  test('an aborted append leaves a producer that goes on', async () => {
    const stop = new AbortController()
    const cluster = kafkaCluster(address)
    const fates: Fate[] = [{ forward: true, answer: 'lost' }]
    const producer = kafkaProducer(
      mishaps(
        {
          ...cluster,
          async refresh(topics, signal) {
            stop.abort(new Error('stop'))
            return cluster.refresh(topics, signal)
          },
        },
        fates,
        [],
      ),
      silent,
    )
    try {
      await assert.rejects(producer.append([batchOf({ ...at, partition: 2 }, ['a'])], stop.signal), /stop/)
      await producer.append([batchOf({ ...at, partition: 2 }, ['b'])], never)
    } finally {
      cluster.close()
    }
    await using log = await openKafkaLog({ ...address, replication: 1 }, silent, never)
    assert.deepEqual((await readAll(log, { ...at, partition: 2 })).slice(-1), ['b'])
  })

  test('log.maxMessageBytes is the topics’, is raised on those that exist, and never lowered', async () => {
    const name = `${prefix}raised`
    const topic: Topic = { name, partitions: 1, cleanup: 'delete' }
    const limit = async (maxMessageBytes: number): Promise<string | undefined> => {
      await using log = await openKafkaLog({ ...address, replication: 1, maxMessageBytes }, silent, never)
      await log.open([topic], never)
      const admin = new kafkajs.Kafka({ brokers: [...brokers], logLevel: kafkajs.logLevel.NOTHING }).admin()
      await admin.connect()
      try {
        const { resources } = await admin.describeConfigs({
          includeSynonyms: false,
          resources: [{ type: kafkajs.ConfigResourceTypes.TOPIC, name }],
        })
        const settings = new Map(resources[0]?.configEntries.map((each) => [each.configName, each.configValue]))
        assert.equal(settings.get('message.timestamp.type'), 'LogAppendTime', 'the other settings stay')
        return settings.get('max.message.bytes')
      } finally {
        await admin.disconnect()
      }
    }
    const mib = 2 ** 20
    assert.equal(await limit(2 * mib), String(2 * mib))
    assert.equal(await limit(20 * mib), String(20 * mib))
    assert.equal(await limit(2 * mib), String(20 * mib))
    // And in effect at once: a broker takes a setting over after it has answered for it.
    await using log = await openKafkaLog({ ...address, replication: 1, maxMessageBytes: 40 * mib }, silent, never)
    await log.open([topic], never)
    const at = { topic: name, partition: 0 }
    const text = randomBytes(8 * mib).toString('hex')
    await log.append([batchOf(at, [text], false, 40 * mib)], never)
    assert.ok((await readAll(log, at)).at(-1) === text)
  })

  test('a broker that takes no request of that size is a blocker', async () => {
    const check = async (maxMessageBytes: number): Promise<Finding | undefined> => {
      await using log = await openKafkaLog({ ...address, replication: 1, maxMessageBytes }, silent, never)
      return (await log.check?.(never))?.[0]
    }
    assert.equal((await check(8 * 2 ** 20))?.level, 'ok')
    const found = await check(128 * 2 ** 20)
    assert.equal(found?.level, 'blocker')
    assert.match(found?.observed ?? '', /^socket\.request\.max\.bytes is 104857600 on broker 1$/)
    assert.match(found?.remedy ?? '', /^Set socket\.request\.max\.bytes=134283264 /)
  })

  test('a batch above the topic’s limit is split, a single record above it is an error', async () => {
    const name = `${prefix}small`
    await using log = await openKafkaLog({ ...address, replication: 1 }, silent, never)
    await log.open([{ name, partitions: 1, cleanup: 'delete' }], never)
    const admin = new kafkajs.Kafka({ brokers: [...brokers], logLevel: kafkajs.logLevel.NOTHING }).admin()
    await admin.connect()
    try {
      const configEntries = [{ name: 'max.message.bytes', value: '5000' }]
      await admin.alterConfigs({
        validateOnly: false,
        resources: [{ type: kafkajs.ConfigResourceTypes.TOPIC, name, configEntries }],
      })
    } finally {
      await admin.disconnect()
    }
    const small = { topic: name, partition: 0 }
    const values = Array.from({ length: 200 }, (_, i) => `${i}-${'v'.repeat(60)}`)
    // The broker takes the new setting over after it has answered for it.
    for (let tries = 0; ; tries++) {
      try {
        await log.append([batchOf(small, ['x'.repeat(4000)])], never)
        assert.ok(tries < 100)
      } catch (error) {
        assert.ok(error instanceof Failure && error.code === 'RECORD_TOO_LARGE', String(error))
        assert.match(error.message, /small: a record of 8\d\d\d bytes/)
        break
      }
    }
    const [before] = await log.ends([small], never)
    assert.equal((await log.append([batchOf(small, values)], never))[0]?.offset, (before?.offset ?? 0) + 200)
    assert.deepEqual(await readAll(log, small, before?.offset), values)
  })

  test('no broker at the address: SERVER_UNREACHABLE within seconds, naming it', async () => {
    const began = performance.now()
    await assert.rejects(
      openKafkaLog({ brokers: ['127.0.0.1:1'], clientId: 'test', replication: 1 }, silent, never),
      (error) =>
        error instanceof Failure && error.code === 'SERVER_UNREACHABLE' && /127\.0\.0\.1:1\b/.test(error.message),
    )
    assert.ok(performance.now() - began < 15_000)
  })

  test('more replicas than brokers: CONFIG_INVALID', async () => {
    await using log = await openKafkaLog({ ...address, replication: 3 }, silent, never)
    await assert.rejects(
      log.open([{ name: `${prefix}three`, partitions: 1, cleanup: 'delete' }], never),
      (error) => error instanceof Failure && error.code === 'CONFIG_INVALID',
    )
  })

  test('a topic deleted and made anew is noticed by writer and reader', async () => {
    const name = `${prefix}anew`
    await using log = await openKafkaLog({ ...address, replication: 1 }, silent, never)
    await log.open([{ name, partitions: 1, cleanup: 'delete' }], never)
    const at = { topic: name, partition: 0 }
    await log.append([batchOf(at, ['a', 'b'])], never)
    await readAll(log, at)
    const admin = new kafkajs.Kafka({ brokers: [...brokers], logLevel: kafkajs.logLevel.NOTHING }).admin()
    await admin.connect()
    try {
      await admin.deleteTopics({ topics: [name] })
      await using again = await openKafkaLog({ ...address, replication: 1 }, silent, never)
      await again.open([{ name, partitions: 1, cleanup: 'delete' }], never)
      await again.append([batchOf(at, ['other', 'content', 'entirely'])], never)
    } finally {
      await admin.disconnect()
    }
    const stopped = (error: unknown): boolean =>
      error instanceof Failure && (error.code === 'TOPIC_MISMATCH' || error.code === 'LOG_GAP')
    await assert.rejects(
      log.append([batchOf(at, ['c'])], never).then(() => log.append([batchOf(at, ['d'])], never)),
      stopped,
    )
  })
})
