import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { Kafka, logLevel } from 'kafkajs'
import { startKafka } from './kafka.ts'
import { processStart } from './processes.ts'
import { kafka, needs } from './servers.ts'

function client(brokers: readonly string[]): Kafka {
  return new Kafka({ clientId: 'test', brokers: [...brokers], logLevel: logLevel.NOTHING })
}

describe('Kafka', needs('kafka'), () => {
  test('takes topics and records; topics are made by no one else', async () => {
    const { brokers, prefix } = await kafka()
    assert.notEqual(prefix, (await kafka()).prefix)
    const admin = client(brokers).admin()
    await admin.connect()
    const topic = `${prefix}events`
    await admin.createTopics({ topics: [{ topic, numPartitions: 3 }], waitForLeaders: true })
    const producer = client(brokers).producer()
    await producer.connect()
    await producer.send({ topic, messages: [{ key: 'a', value: 'b' }] })
    await producer.disconnect()
    const offsets = await admin.fetchTopicOffsets(topic)
    assert.equal(
      offsets.reduce((sum, { high }) => sum + Number(high), 0),
      1,
    )
    await assert.rejects(admin.fetchTopicMetadata({ topics: [`${prefix}absent`] }))
    await admin.deleteTopics({ topics: [topic] })
    await admin.disconnect()
  })

  test('keeps what was acknowledged through a crash, on the same port', async () => {
    await using cluster = await startKafka()
    const admin = client(cluster.brokers).admin()
    await admin.connect()
    await admin.createTopics({ topics: [{ topic: 'kept', numPartitions: 1 }], waitForLeaders: true })
    const producer = client(cluster.brokers).producer()
    await producer.connect()
    await producer.send({ topic: 'kept', acks: -1, messages: [{ value: 'x' }] })
    await producer.disconnect()
    const [pid = 0] = cluster.pids
    await cluster.kill9()
    assert.equal(processStart(pid), '')
    assert.deepEqual(cluster.pids, [0])
    await cluster.restart()
    assert.equal((await admin.fetchTopicOffsets('kept'))[0]?.high, '1')
    await admin.disconnect()
  })

  test('three nodes elect another leader when one is killed', async () => {
    await using cluster = await startKafka({ nodes: 3 })
    const admin = client(cluster.brokers).admin()
    await admin.connect()
    await admin.createTopics({
      topics: [{ topic: 'led', numPartitions: 1, replicationFactor: 3 }],
      waitForLeaders: true,
    })
    const leader = async (): Promise<number> =>
      (await admin.fetchTopicMetadata({ topics: ['led'] })).topics[0]?.partitions[0]?.leader ?? -1
    const first = await leader()
    await cluster.kill9(first)
    const deadline = Date.now() + 20_000
    let now = first
    while (now === first || now < 1) {
      assert.ok(Date.now() < deadline, 'no other leader within 20 s')
      now = await leader().catch(() => first)
    }
    await cluster.restart(first)
    assert.equal(cluster.pids.includes(0), false)
    await admin.disconnect()
  })
})
