import assert from 'node:assert/strict'
import { after, before, describe, it, type TestContext } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { startKafka, type KafkaCluster } from '../support/kafka.ts'
import { sql, startPostgres, type PostgresServer } from '../support/postgres.ts'
import { startProxy, type Proxy } from '../support/proxy.ts'
import { createThings, scene, untilEqual, type Scene } from '../support/scene.ts'
import { needs } from '../support/servers.ts'
import { compareShops, createShop, loadShop, startWriters, type Writers } from '../support/shop.ts'
import { until, type Worker } from '../support/worker.ts'

/** Servers of our own, each behind a proxy. */
describe('what goes away and comes back', needs('pg', 'kafka'), () => {
  let source: PostgresServer
  let target: PostgresServer
  let cluster: KafkaCluster
  let toSource: Proxy
  let toTarget: Proxy
  let kafkaLog = ''
  before(async () => {
    ;[source, target, cluster] = await Promise.all([startPostgres(), startPostgres(), startKafka()])
    toSource = await startProxy(source.port)
    toTarget = await startProxy(target.port)
    kafkaLog = `{ type: kafka, brokers: ["${cluster.brokers[0]}"], partitions: 2, replication: 1 }`
  })
  after(async () => {
    for (const each of [toSource, toTarget, source, target, cluster]) await each?.[Symbol.asyncDispose]()
  })

  const hurts: Readonly<Record<string, () => Promise<void>>> = {
    'the source, restarted': async () => await source.restart(),
    'the source, killed': async () => {
      await source.kill9()
      await source.restart()
    },
    'the target, restarted': async () => await target.restart(),
    'the target, killed': async () => {
      await target.kill9()
      await target.restart()
    },
    'the broker, for 20 s': async () => {
      await cluster.kill9()
      await sleep(20_000)
      await cluster.restart()
    },
    'the way to both, cut': async () => {
      toSource.cut()
      toTarget.cut()
    },
    // Longer than a lease lives.
    'the way to both, silent for 8 s': async () => {
      toSource.pause()
      toTarget.pause()
      await sleep(8000)
      toSource.resume()
      toTarget.resume()
    },
  }

  const killBroker = async (): Promise<void> => {
    await cluster.kill9()
    await cluster.restart()
  }

  async function prepared(name: string, log: string, more: string): Promise<Scene> {
    const [from, to] = [await source.createDatabase(`${name}_source`), await target.createDatabase(`${name}_target`)]
    return await scene({ source: from, target: to, name, mode: 'hybrid', log, more })
  }
  /** Through the proxies, while the comparison goes straight. */
  function start(pipeline: Scene): Worker {
    const through = (url: string, { port }: Proxy): string => {
      const address = new URL(url)
      address.port = String(port)
      return address.href
    }
    return pipeline.run([], {
      SOURCE_URL: through(pipeline.source, toSource),
      TARGET_URL: through(pipeline.target, toTarget),
    })
  }

  it('is waited for while changes stream, by one process from the first to the last', async (t) => {
    await using pipeline = await prepared('streaming', kafkaLog, '')
    await createShop(pipeline.source)
    await loadShop(pipeline.source, 5000)
    const worker = start(pipeline)
    const equal = async (): Promise<readonly string[]> =>
      await compareShops(pipeline.source, pipeline.target, undefined).catch((error: unknown) => [String(error)])
    await until(equal, { seconds: 90, worker })
    for (const [what, hurt] of Object.entries(hurts)) {
      await t.test(what, async (t) => {
        const writers = startWriters(pipeline.source, { writers: 2, pause: 15, seed: what.length })
        try {
          await commits(writers, 20)
          await hurt()
          await commits(writers, 20)
        } finally {
          await writers.stop()
        }
        await timed(t, what, async () => await until(equal, { seconds: 90, worker }))
      })
    }
    const end = await worker.stop()
    assert.equal(end.code, 0, end.stderr)
  })

  const rows = 60_000
  const some = ['the source, killed', 'the target, killed', 'the broker, killed', 'the way to both, cut']
  some.forEach((what, i) => {
    it(`is waited for while tables are copied: ${what}`, async (t) => {
      const log = what.startsWith('the broker') ? kafkaLog : '{ type: embedded, partitions: 2 }'
      await using pipeline = await prepared(`copying${i}`, log, 'snapshot: { parallel: 2, chunkRows: 600 }')
      await createThings(pipeline.source, rows)
      const worker = start(pipeline)
      const chunks = async (): Promise<number> => {
        const found = await sql<{ n: number }>(
          pipeline.target,
          'select count(*)::int as n from crossfade.chunk where done',
        ).catch(() => [])
        return found[0]?.n ?? 0
      }
      await until(async () => ((await chunks()) >= 5 ? [] : ['nothing copied yet']), { seconds: 90, worker })
      const copied = await chunks()
      await (hurts[what] ?? killBroker)()
      assert.ok(copied < rows / 600, 'the copy was over')
      await sql(
        pipeline.source,
        `update thing set name = name || '!' where id % 100 = 0; delete from thing where id < 50`,
      )
      await timed(t, what, async () => await untilEqual(pipeline, worker, 90))
      const end = await worker.stop()
      assert.equal(end.code, 0, end.stderr)
    })
  })
})

/** Until so many more were acknowledged. */
async function commits(writers: Writers, more: number): Promise<void> {
  const wanted = writers.acknowledged() + more
  const deadline = performance.now() + 60_000
  while (writers.acknowledged() < wanted) {
    if (performance.now() > deadline) throw new Error('the writers wrote nothing')
    await sleep(20)
  }
}

async function timed(t: TestContext, fault: string, work: () => Promise<void>): Promise<void> {
  const began = performance.now()
  await work()
  t.diagnostic(`fault: ${fault}; equal after ${((performance.now() - began) / 1000).toFixed(1)} s`)
}
