import { describe, test } from 'node:test'
import { appendsThroughOutages } from '../conformance/appends-through-outages.ts'
import { needs } from '../support/servers.ts'

describe('Kafka change log on three brokers', { skip: needs('kafka').skip }, () => {
  test('each broker killed in turn while appending: every record once, in order', async (t) => {
    await appendsThroughOutages(3, async (cluster, advance) => {
      for (const node of [1, 2, 3]) {
        await cluster.kill9(node)
        t.diagnostic(`fault: broker ${node} killed`)
        await advance()
        await cluster.restart(node)
        await advance()
      }
    })
  })

  test('a broker frozen, then all killed at once: every record once, in order', async (t) => {
    await appendsThroughOutages(3, async (cluster, advance) => {
      cluster.pause(1)
      t.diagnostic('fault: broker 1 stopped')
      await advance()
      cluster.resume(1)
      await advance()
      await cluster.kill9()
      t.diagnostic('fault: all brokers killed')
      await cluster.restart()
      await advance()
    })
  })
})
