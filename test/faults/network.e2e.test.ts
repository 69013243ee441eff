import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { startKafka, type KafkaCluster } from '../support/kafka.ts'
import { startPostgres, type PostgresServer } from '../support/postgres.ts'
import { seed, shopPipeline, through } from '../support/hurt.ts'
import { freePort } from '../support/processes.ts'
import { startProxy, type Proxy } from '../support/proxy.ts'
import { needs } from '../support/servers.ts'

const holdMs = 30_000
/** From healing to equal ends. */
const recoverySeconds = 30

const faults: Readonly<Record<string, (way: Proxy) => { readonly again?: () => void; readonly heal: () => void }>> = {
  'latency of 150 ms in each direction': (way) => {
    way.delay(150)
    return { heal: () => way.delay(0) }
  },
  'a black hole': (way) => {
    way.swallow(true)
    return { heal: () => way.swallow(false) }
  },
  'half-open, answers lost': (way) => {
    way.dropAnswers(true)
    return { heal: () => way.dropAnswers(false) }
  },
  'half-open, questions lost': (way) => {
    way.dropRequests(true)
    return { heal: () => way.dropRequests(false) }
  },
  'a reset each second': (way) => ({ again: () => way.cut(), heal: () => {} }),
  'every 50th answer lost': (way) => {
    way.loseAnswers(50)
    return { heal: () => way.loseAnswers(0) }
  },
}

/** One pipeline for each way that can be hurt, side by side. Nobody helps, no process ends, and no row is wrong. */
describe('a network that fails between', { ...needs('pg', 'kafka'), concurrency: 4 }, () => {
  let source: PostgresServer
  let target: PostgresServer
  let cluster: KafkaCluster
  const ways: Proxy[] = []
  before(async () => {
    const port = await freePort()
    const settings = { 'advertised.listeners': `PLAINTEXT://127.0.0.1:${port}` }
    ;[source, target, cluster] = await Promise.all([startPostgres(), startPostgres(), startKafka({ settings })])
    const isReplication = (first: Buffer): boolean => first.includes('replication')
    ways.push(
      await startProxy(source.port, undefined, { only: (first) => !isReplication(first) }),
      await startProxy(source.port, undefined, { only: isReplication }),
      await startProxy(target.port),
      await startProxy(Number(cluster.brokers[0]?.split(':')[1]), undefined, { port }),
    )
  })
  after(async () => {
    for (const each of [...ways, source, target, cluster]) await each?.[Symbol.asyncDispose]()
  })

  const pairs = ['worker and source: sql', 'worker and source: replication', 'worker and target', 'worker and broker']
  pairs.forEach((pair, i) => {
    it(`H11, H18, H30: ${pair}`, async (t) => {
      t.diagnostic(`CROSSFADE_SEED=${seed}`)
      const way = ways[i]
      assert.ok(way)
      const [from, to] = [await source.createDatabase(`from${i}`), await target.createDatabase(`to${i}`)]
      const log =
        i === 3 ? `{ type: kafka, brokers: ["127.0.0.1:${way.port}"], partitions: 2, replication: 1 }` : undefined
      const env = { ...(i < 2 && { SOURCE_URL: through(from, way) }), ...(i === 2 && { TARGET_URL: through(to, way) }) }
      await using pipeline = await shopPipeline({ source: from, target: to, env, ...(log && { log }) })
      for (const [what, hurt] of Object.entries(faults)) {
        await t.test(what, async (t) => {
          const fault = `${pair}: ${what} for ${holdMs / 1000} s`
          const hold = async (): Promise<void> => {
            const { again, heal } = hurt(way)
            for (const end = performance.now() + holdMs; performance.now() < end; await sleep(1000)) again?.()
            heal()
          }
          await pipeline.hurt(t, fault, hold, { within: recoverySeconds, pause: 40 })
        })
      }
      await pipeline.end()
    })
  })
})
