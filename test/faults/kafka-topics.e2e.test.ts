import assert from 'node:assert/strict'
import { after, before, describe, it, type TestContext } from 'node:test'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Kafka, logLevel, type Admin } from 'kafkajs'
import { startKafka, type KafkaCluster } from '../support/kafka.ts'
import { sql } from '../support/postgres.ts'
import { assertRefusal, createThings, scene, untilEqual, type Scene } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { connected } from '../support/shop.ts'
import { until, type Ended, type Worker } from '../support/worker.ts'

const rows = 500

/** Topics are taken away and records removed under pipelines that are written to. Where a pipeline must stop, its target is a state that the source
 *  once had: rows are only added, in the order of their ids, so it has no hole. */
describe('what others do to the topics of a pipeline', { ...needs('pg', 'kafka'), concurrency: 3 }, () => {
  let cluster: KafkaCluster
  let admin: Admin
  before(async () => {
    cluster = await startKafka()
    admin = new Kafka({ brokers: [...cluster.brokers], logLevel: logLevel.NOTHING }).admin()
    await admin.connect()
  })
  after(async () => {
    await admin?.disconnect()
    await cluster?.[Symbol.asyncDispose]()
  })

  async function prepared(): Promise<Scene> {
    const pg = await postgres(18)
    const [source, target] = [await pg.database('topics_source'), await pg.database('topics_target')]
    await createThings(source, rows)
    const log = `{ type: kafka, brokers: ["${cluster.brokers[0]}"], partitions: 2, replication: 1 }`
    return await scene({ source, target, mode: 'hybrid', log })
  }
  /** Gone when it resolves; `anew`: and there again with the settings and partitions it had. */
  async function remove(topic: string, anew: boolean): Promise<void> {
    await admin.deleteTopics({ topics: [topic] })
    if (!anew) return
    const settings = topic.endsWith('.schemas')
      ? { 'cleanup.policy': 'compact' }
      : topic.endsWith('.control')
        ? { 'retention.ms': '-1' }
        : { 'retention.bytes': '-1' }
    const all = { 'max.message.bytes': '8388608', 'message.timestamp.type': 'LogAppendTime', ...settings }
    const configEntries = Object.entries(all).map(([name, value]) => ({ name, value }))
    await until(
      async () =>
        await admin.createTopics({ topics: [{ topic, numPartitions: 1, replicationFactor: 1, configEntries }] }).then(
          (made) => (made ? [] : ['still there']),
          (error: unknown) => [String(error)],
        ),
      { seconds: 20 },
    )
  }
  const topicOf = ({ name }: Scene, what: string): string => `${name}.${what === 'data' ? 'public.thing' : what}`

  for (const what of ['data', 'control', 'schemas']) {
    for (const anew of [false, true]) {
      const fault = `its ${what} topic deleted${anew ? ' and made anew' : ''}`
      it(`H23: a topic taken away while it runs: ${fault}: it stops and says so`, async (t) => {
        await using pipeline = await prepared()
        const worker = pipeline.run()
        await untilEqual(pipeline, worker)
        await using writer = startWriter(pipeline.source)
        await writer.more(20)
        await remove(topicOf(pipeline, what), anew)
        const began = performance.now()
        const end = await within(worker.ended, 80, worker)
        told(t, fault, began)
        assertStopped(end, ['TOPIC_MISMATCH', 'LOG_GAP'], topicOf(pipeline, what))
        await writer.more(20)
        assertRefusal(await pipeline.refused(), 'TOPIC_MISMATCH', 1)
        await assertNoHole(pipeline)
      })

      it(`H23: a topic taken away while it is stopped: ${fault}: it does not start`, async (t) => {
        await using pipeline = await prepared()
        const worker = pipeline.run()
        await untilEqual(pipeline, worker)
        await worker.kill9()
        await using writer = startWriter(pipeline.source)
        await writer.more(20)
        await remove(topicOf(pipeline, what), anew)
        const began = performance.now()
        const refusal = await pipeline.refused()
        told(t, fault, began)
        assertRefusal(refusal, 'TOPIC_MISMATCH', 1)
        assert.match(refusal.error.object ?? '', new RegExp(`topic ${topicOf(pipeline, what).replaceAll('.', '\\.')}$`))
        await assertNoHole(pipeline)
      })
    }
  }

  /** All records before the end of each partition. */
  async function empty(topic: string): Promise<void> {
    const partitions = (await admin.fetchTopicOffsets(topic)).map(({ partition, high }) => ({
      partition,
      offset: high,
    }))
    await admin.deleteTopicRecords({ topic, partitions })
  }

  it('H14: a stop longer than the retention of its topics: it goes on where it was', async (t) => {
    await using pipeline = await prepared()
    await streamedAndStopped(pipeline)
    const topics = ['data', 'control', 'schemas'].map((what) => topicOf(pipeline, what))
    const [data = '', control = ''] = topics
    // All that is old goes, as after a year; what the topics keep by their own settings stays.
    const { resources } = await admin.describeConfigs({
      includeSynonyms: false,
      resources: [data, control].map((name) => ({ type: 2, name })),
    })
    const kept = resources.map(({ configEntries }) =>
      configEntries.find(({ configName }) => configName === 'retention.ms'),
    )
    assert.deepEqual(
      kept.map((entry) => entry?.configValue),
      ['604800000', '-1'],
    )
    await empty(data)
    const began = performance.now()
    await sql(pipeline.source, `insert into thing select i, 'after' from generate_series(5001, 5100) i`)
    const next = pipeline.run()
    await untilEqual(pipeline, next)
    told(t, 'retention emptied the data topic', began)
    assert.equal((await next.stop()).code, 0)
  })

  it('H14: a control topic emptied by somebody: it does not start, and says what is missing', async (t) => {
    await using pipeline = await prepared()
    await streamedAndStopped(pipeline)
    await empty(topicOf(pipeline, 'control'))
    const began = performance.now()
    await sql(pipeline.source, `insert into thing values (5001, 'after')`)
    const refusal = await pipeline.refused()
    told(t, 'the control topic emptied', began)
    assertRefusal(refusal, 'LOG_GAP', 1)
    assert.match(refusal.error.observed ?? '', /the last watermark among them/)
    await assertNoHole(pipeline)
  })

  it('retention that removed records before they were applied: it stops and says what to do', async (t) => {
    await using pipeline = await prepared()
    const worker = pipeline.run()
    await untilEqual(pipeline, worker)
    const topic = topicOf(pipeline, 'data')
    const end = async (): Promise<number> => Number((await admin.fetchTopicOffsets(topic))[0]?.high)
    const first = await end()
    await using other = await connected(pipeline.target)
    await other.query('begin; lock table thing in access exclusive mode')
    await sql(pipeline.source, `insert into thing select i, 'waits' from generate_series(5001, 5100) i`)
    await until(async () => ((await end()) >= first + 100 ? [] : ['not in the log yet']), { seconds: 20, worker })
    await worker.kill9()
    // By age and by the broker, not by request: each record is older than a moment, and each segment full.
    await retainNothing(topic)
    await sql(pipeline.source, `insert into thing values (6001, 'rolls the segment')`)
    await until(async () => ((await low(topic)) > first ? [] : ['still there']), { seconds: 60 })
    await retainAll(topic)
    await other.query('rollback')
    const began = performance.now()
    const refusal = await pipeline.refused()
    told(t, 'retention removed 100 records that were not applied', began)
    assertRefusal(refusal, 'LOG_GAP', 1)
    assert.match(refusal.error.next ?? '', /retention longer than any stop/)
    assert.deepEqual(await sql(pipeline.target, 'select count(*)::int as n from thing where id > 5000'), [{ n: 0 }])
  })

  const low = async (topic: string): Promise<number> => Number((await admin.fetchTopicOffsets(topic))[0]?.low)
  const alter = async (topic: string, settings: Readonly<Record<string, string>>): Promise<void> => {
    const base = { 'max.message.bytes': '8388608', 'message.timestamp.type': 'LogAppendTime' }
    const configEntries = Object.entries({ ...base, ...settings }).map(([name, value]) => ({ name, value }))
    await admin.alterConfigs({ validateOnly: false, resources: [{ type: 2, name: topic, configEntries }] })
  }
  const retainNothing = async (topic: string): Promise<void> =>
    await alter(topic, { 'retention.ms': '1', 'segment.ms': '100' })
  const retainAll = async (topic: string): Promise<void> => await alter(topic, { 'retention.bytes': '-1' })

  async function streamedAndStopped(pipeline: Scene): Promise<void> {
    const worker = pipeline.run()
    await untilEqual(pipeline, worker)
    await sql(pipeline.source, `insert into thing select i, 'before' from generate_series(${rows + 1}, 1000) i`)
    await untilEqual(pipeline, worker)
    assert.equal((await worker.stop()).code, 0)
  }

  it('group offsets deleted or reset, and their topic gone: nothing is resumed from them', async (t) => {
    await using pipeline = await prepared()
    const worker = pipeline.run()
    await untilEqual(pipeline, worker)
    await using writer = startWriter(pipeline.source)
    await writer.more(20)
    const { groups } = await admin.listGroups()
    t.diagnostic(`consumer groups there: ${groups.map(({ groupId }) => groupId).join(', ') || 'none'}`)
    const topic = topicOf(pipeline, 'data')
    // A group of the pipeline's name, as a lag tool would read it, told that nothing was read yet.
    for (const groupId of [pipeline.name, `crossfade-${pipeline.name}`]) {
      await admin.setOffsets({ groupId, topic, partitions: [{ partition: 0, offset: '0' }] })
    }
    await worker.kill9()
    await admin.deleteTopics({ topics: ['__consumer_offsets'] })
    const began = performance.now()
    const next = pipeline.run()
    await writer.more(20)
    await writer.stop()
    await untilEqual(pipeline, next)
    told(t, 'group offsets reset, their topic deleted', began)
    assert.equal((await next.stop()).code, 0)
  })

  it('a record of somebody else in a data topic: what is none of ours is passed over, what looks like ours stops it', async (t) => {
    await using pipeline = await prepared()
    await sql(pipeline.source, 'create table other (id int primary key)')
    const worker = pipeline.run()
    await untilEqual(pipeline, worker, 80, ['thing', 'other'])
    const producer = new Kafka({ brokers: [...cluster.brokers], logLevel: logLevel.NOTHING }).producer()
    await producer.connect()
    const topic = topicOf(pipeline, 'data')
    try {
      await producer.send({ topic, messages: [{ key: 'theirs', value: '{"hello": 1}' }] })
      await sql(pipeline.source, `insert into thing select i, 'x' from generate_series(${rows + 1}, 600) i`)
      await untilEqual(pipeline, worker)
      const offset = Number((await admin.fetchTopicOffsets(topic))[0]?.high)
      const began = performance.now()
      const framed = Buffer.concat([Buffer.from([0, 0, 0, 0, 77]), Buffer.from('an envelope of another registry')])
      await producer.send({ topic, messages: [{ key: 'theirs', value: framed }] })
      const end = await within(worker.ended, 80, worker)
      told(t, 'a record with the framing of a schema registry', began)
      assertStopped(end, ['LOG_DAMAGED', 'LOG_GAP'], `${topic}, partition 0, offset ${offset}`)
      assert.match(end.stderr, /schema 77/)
    } finally {
      await producer.disconnect()
    }
    await assertNoHole(pipeline)
    // The way on that it names: nothing is passed over, and nothing is lost.
    const file = join(pipeline.work.dir, 'crossfade.yaml')
    const yaml = await readFile(file, 'utf8')
    await writeFile(file, yaml.replace('tables: { include: ["public.*"]', '$&, exclude: ["public.thing"]'))
    await sql(pipeline.source, `insert into thing values (1000, 'meanwhile'); insert into other values (1)`)
    const without = pipeline.run()
    await untilEqual(pipeline, without, 80, ['other'])
    assert.equal((await without.stop()).code, 0)
    await writeFile(file, yaml)
    await sql(pipeline.target, 'truncate thing')
    const again = pipeline.run()
    await sql(pipeline.source, `update thing set name = 'later' where id % 7 = 0`)
    await untilEqual(pipeline, again, 80, ['thing', 'other'])
    assert.equal((await again.stop()).code, 0)
  })
})

/** Adds rows one by one, in the order of their ids, until it is stopped. */
function startWriter(url: string): AsyncDisposable & { more(n: number): Promise<void>; stop(): Promise<void> } {
  let id = rows
  let stopped = false
  const writing = (async () => {
    await using client = await connected(url)
    while (!stopped) {
      id++
      await client.query(`insert into thing values ($1, 'written')`, [id])
      await sleep(20)
    }
  })()
  const stop = async (): Promise<void> => {
    stopped = true
    await writing
  }
  return {
    async more(n) {
      const wanted = id + n
      while (id < wanted) await Promise.race([sleep(20), writing])
    },
    stop,
    [Symbol.asyncDispose]: stop,
  }
}

async function within(ended: Promise<Ended>, seconds: number, worker: Worker): Promise<Ended> {
  const late = Promise.withResolvers<never>()
  const timer = setTimeout(() => late.reject(new Error(`it still runs:\n${worker.output()}`)), seconds * 1000)
  try {
    return await Promise.race([ended, late.promise])
  } finally {
    clearTimeout(timer)
  }
}

function assertStopped({ code, stdout, stderr }: Ended, codes: readonly string[], named: string): void {
  assert.equal(code, 1, stdout + stderr)
  const failure = stderr.slice(stderr.indexOf('✗ '))
  assert.match(failure, new RegExp(`^✗ (${codes.join('|')}) `), stderr)
  assert.ok(failure.includes(named), failure)
  assert.match(failure, /^ {4}next +\S/m)
}

async function assertNoHole({ target }: Scene): Promise<void> {
  const found = await sql(target, 'select count(*)::int as n, max(id) as last from thing')
  assert.equal(found[0]?.['n'], found[0]?.['last'], JSON.stringify(found))
}

function told(t: TestContext, fault: string, began: number): void {
  t.diagnostic(`fault: ${fault}; told or equal after ${((performance.now() - began) / 1000).toFixed(1)} s`)
}
