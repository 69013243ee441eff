import assert from 'node:assert/strict'
import { globSync, rmSync, statSync, truncateSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, it, type TestContext } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Kafka, logLevel, type PartitionMetadata } from 'kafkajs'
import { startKafka, type KafkaCluster } from '../support/kafka.ts'
import { sql } from '../support/postgres.ts'
import { assertRefusal, createThings, scene, untilEqual, type Scene } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { compareShops, compareTables, createShop, loadShop, startWriters, type Writers } from '../support/shop.ts'
import { createTicks, startTicks, type Ticks } from '../support/ticks.ts'
import { until, type Worker } from '../support/worker.ts'

const seed = Number(process.env['CROSSFADE_SEED'] ?? Date.now() % 100_000)

async function leaderOf(cluster: KafkaCluster, topic: string): Promise<number> {
  return (await partitionOf(cluster, topic))?.leader ?? 1
}

/** All replicas of the topic's first partition. */
async function inSync(cluster: KafkaCluster, topic: string): Promise<void> {
  const missing = async (): Promise<readonly string[]> => {
    const found = await partitionOf(cluster, topic).catch(() => undefined)
    return found?.isr.length === 3 ? [] : [`in sync: ${found?.isr.join(', ')}`]
  }
  await until(missing, { seconds: 120 })
}

/** Beside what a data topic has by default here. */
async function alter(cluster: KafkaCluster, topic: string, minInsync: number): Promise<void> {
  const admin = new Kafka({ brokers: [...cluster.brokers], logLevel: logLevel.NOTHING }).admin()
  await admin.connect()
  try {
    const settings = { 'min.insync.replicas': String(minInsync), 'max.message.bytes': '8388608' }
    const configEntries = Object.entries(settings).map(([name, value]) => ({ name, value }))
    await admin.alterConfigs({ validateOnly: false, resources: [{ type: 2, name: topic, configEntries }] })
  } finally {
    await admin.disconnect()
  }
}

async function partitionOf(cluster: KafkaCluster, topic: string): Promise<PartitionMetadata | undefined> {
  const admin = new Kafka({ brokers: [...cluster.brokers], logLevel: logLevel.NOTHING }).admin()
  await admin.connect()
  try {
    return (await admin.fetchTopicMetadata({ topics: [topic] })).topics[0]?.partitions[0]
  } finally {
    await admin.disconnect()
  }
}

describe('three brokers, each partition on all of them', needs('pg', 'kafka'), () => {
  let cluster: KafkaCluster
  let pipeline: Scene
  let worker: Worker
  let writers: Writers
  let ticks: Ticks
  before(async () => {
    cluster = await startKafka({ nodes: 3 })
    const pg = await postgres(18)
    const [source, target] = [await pg.database('brokers_source'), await pg.database('brokers_target')]
    await createShop(source)
    await loadShop(source, 5000)
    await createTicks(source)
    const brokers = cluster.brokers.map((each) => `"${each}"`).join(', ')
    const log = `{ type: kafka, brokers: [${brokers}], partitions: 2, replication: 3 }`
    pipeline = await scene({ source, target, mode: 'hybrid', log })
    worker = pipeline.run()
    await until(async () => await differences(), { seconds: 90, worker })
    writers = startWriters(source, { seed, writers: 2, pause: 10 })
    ticks = startTicks(source, target)
  })
  after(async () => {
    await ticks?.stop()
    await writers?.stop()
    await pipeline?.[Symbol.asyncDispose]()
    await cluster?.[Symbol.asyncDispose]()
  })

  const differences = async (written?: Parameters<typeof compareShops>[2]): Promise<readonly string[]> =>
    await compareShops(pipeline.source, pipeline.target, written).catch((error: unknown) => [String(error)])
  /** What is left to be done once changes come through again. */
  const faults: Readonly<Record<string, () => Promise<() => Promise<void>>>> = {
    'the leader of the control topic killed': async () => {
      const leader = await leaderOf(cluster, `${pipeline.name}.control`)
      await cluster.kill9(leader)
      return async () => await cluster.restart(leader)
    },
    'the leader of a data topic stopped without a word': async () => {
      const leader = await leaderOf(cluster, `${pipeline.name}.public.ledger`)
      cluster.pause(leader)
      return async () => cluster.resume(leader)
    },
    'all restarted, one after the other': async () => {
      for (const node of [1, 2, 3]) {
        await cluster.restart(node)
        await inSync(cluster, `${pipeline.name}.control`)
      }
      return async () => {}
    },
    'all killed at once': async () => {
      await cluster.kill9()
      await cluster.restart()
      return async () => {}
    },
  }
  for (const [fault, hurt] of Object.entries(faults)) {
    it(`${fault}: the run goes on by itself`, async (t) => {
      await ticks.through(60)
      ticks.worst()
      const repair = await hurt()
      await ticks.through(120)
      const worst = ticks.worst()
      t.diagnostic(`fault: ${fault}; nothing came through for ${worst.toFixed(1)} s at most`)
      // Requests to a silent broker are not waited for to their end.
      if (fault.includes('without a word')) assert.ok(worst < 15, `${worst} s`)
      await repair()
      await inSync(cluster, `${pipeline.name}.control`)
    })
  }

  it('too few replicas in sync: it waits, says so, and goes on when there are enough', async (t) => {
    const topic = `${pipeline.name}.public.tick`
    await ticks.through(60)
    const before = worker.output().length
    const leader = await leaderOf(cluster, topic)
    await alter(cluster, topic, 3)
    await cluster.kill9((leader % 3) + 1)
    const began = performance.now()
    const said = async (): Promise<readonly string[]> =>
      /too few replicas are in sync/.test(worker.output().slice(before)) ? [] : ['no word of it']
    await until(said, { seconds: 60, worker })
    told(t, 'fewer replicas in sync than min.insync.replicas: it says so', began)
    const back = performance.now()
    await alter(cluster, topic, 2)
    await ticks.through(90)
    told(t, 'enough of them again: changes come through', back)
    await cluster.restart((leader % 3) + 1)
  })

  it('nothing is lost or doubled by all that: contents, money and ledger', async (t) => {
    t.diagnostic(`CROSSFADE_SEED=${seed}`)
    await ticks.stop()
    const written = await writers.stop()
    const equal = async (): Promise<readonly string[]> => [
      ...(await differences(written)),
      ...(await compareTables(pipeline.source, pipeline.target, ['tick'])),
    ]
    await until(equal, { seconds: 90, worker })
    const end = await worker.stop()
    assert.equal(end.code, 0, end.stdout + end.stderr)
  })
})

describe('a broker that comes back with older data', needs('pg', 'kafka'), () => {
  for (const running of [true, false]) {
    const how = running ? 'while it runs' : 'while it is stopped'
    it(`H23: acknowledged records are gone ${how}: it stops before it writes over them`, async (t) => {
      await using cluster = await startKafka()
      const pg = await postgres(18)
      const [source, target] = [await pg.database('older_source'), await pg.database('older_target')]
      await createThings(source, 500)
      const log = `{ type: kafka, brokers: ["${cluster.brokers[0]}"], partitions: 1, replication: 1 }`
      await using pipeline = await scene({ source, target, mode: 'hybrid', log })
      const worker = pipeline.run()
      await untilEqual(pipeline, worker)
      for (let i = 501; i <= 520; i++) await sql(source, `insert into thing values (${i}, 'streamed')`)
      await untilEqual(pipeline, worker)
      if (!running) await worker.stop()
      await cluster.kill9()
      loseTail(cluster, `${pipeline.name}.public.thing`)
      const began = performance.now()
      await cluster.restart()
      for (let i = 521; i <= 560; i++) await sql(source, `insert into thing values (${i}, 'after')`)
      if (running) {
        const end = await Promise.race([worker.ended, sleep(90_000)])
        assert.equal(end?.code, 1, worker.output())
        assert.match(end?.stderr ?? '', /✗ (LOG_GAP|LOG_DAMAGED) /)
      }
      const refusal = await pipeline.refused()
      told(t, `the tail of a topic lost ${how}`, began)
      assertRefusal(refusal, 'LOG_DAMAGED', 1)
      const found = await sql(target, 'select count(*)::int as n, max(id) as last from thing')
      assert.equal(found[0]?.['n'], found[0]?.['last'], JSON.stringify(found))
    })
  }
})

/** As if the disk had never got the second half. */
function loseTail(cluster: KafkaCluster, topic: string): void {
  const [file] = globSync(join(cluster.logDir, '1/data', `${topic}-0`, '*.log'))
  assert.ok(file !== undefined)
  truncateSync(file, Math.floor(statSync(file).size / 2))
  for (const index of globSync(`${file.slice(0, -4)}.*index`)) rmSync(index)
}

function told(t: TestContext, fault: string, began: number): void {
  t.diagnostic(`fault: ${fault}; ${((performance.now() - began) / 1000).toFixed(1)} s`)
}
