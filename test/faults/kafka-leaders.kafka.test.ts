import { describe, test } from 'node:test'
import { appendsThroughOutages } from '../conformance/appends-through-outages.ts'
import { needs } from '../support/servers.ts'

describe('Kafka change log on three brokers', { skip: needs('kafka').skip }, () => {
  test('each broker killed in turn while appending: every record once, in order', async () => {
    await appendsThroughOutages(3, async (cluster, advance) => {
      for (const node of [1, 2, 3]) {
        await cluster.kill9(node)
        await advance()
        await cluster.restart(node)
        await advance()
      }
    })
  })

  test('a broker frozen, then all killed at once: every record once, in order', { timeout: 300_000 }, async () => {
    await appendsThroughOutages(3, async (cluster, advance) => {
      cluster.pause(1)
      await advance()
      cluster.resume(1)
      await advance()
      await cluster.kill9()
      await cluster.restart()
      await advance()
    })
  })
})
