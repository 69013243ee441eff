import { describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { appendsThroughOutages } from '../../conformance/appends-through-outages.ts'
import { needs } from '../../support/servers.ts'

describe('Kafka change log', { skip: needs('kafka').skip }, () => {
  test('broker killed twice while appending: every record once, in order', async () => {
    await appendsThroughOutages(1, async (cluster, advance) => {
      for (let time = 0; time < 2; time++) {
        await cluster.kill9()
        await cluster.restart()
        await advance()
      }
    })
  })

  test('broker frozen for longer than a request may take: every record once, in order', async () => {
    await appendsThroughOutages(1, async (cluster, advance) => {
      cluster.pause(1)
      await sleep(14_000) // the request is given up; the broker wakes to it and to its repetition
      cluster.resume(1)
      await advance()
    })
  })
})
