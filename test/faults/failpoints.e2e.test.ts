import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import type { Failpoint } from '../../src/failpoint.ts'
import { logConfig, uniqueName } from '../support/kills.ts'
import { needs, postgres } from '../support/servers.ts'
import { compareShops, createShop, loadShop, startWriters } from '../support/shop.ts'
import { until, workplace } from '../support/worker.ts'

/** Which passing of each point kills: the first, and a later one. */
const deaths: Readonly<Record<Failpoint, readonly number[]>> = {
  'capture.before-append': [1, 20],
  'capture.between-append-and-ack': [1, 20],
  'capture.after-ack': [1, 20],
  'apply.before-commit': [1, 20],
  'apply.between-commit-and-answer': [1, 20],
  'copy.before-chunk': [1, 5],
  'copy.in-chunk': [2, 9],
  'copy.after-chunk': [1, 5],
  'copy.between-hold-and-snapshot': [1],
  'copy.before-live': [1],
}

describe('a worker that dies at a named place', needs('pg', 'kafka'), () => {
  for (const [point, passings] of Object.entries(deaths)) {
    for (const passing of passings) {
      it(`${point}, passing ${passing}`, { timeout: 120_000 }, async () => {
        const pg = await postgres(18)
        const [source, target] = [await pg.database('failpoint_source'), await pg.database('failpoint_target')]
        await createShop(source)
        await loadShop(source, 20_000)
        await using work = await workplace(`name: ${uniqueName('failpoint')}
source: { type: postgres, url: "${source}" }
target: { type: postgres, url: "${target}" }
tables: { include: ["public.*"] }
log: ${await logConfig('kafka')}
snapshot: { parallel: 2, chunkRows: 2000 }
`)
        const writers = startWriters(source, { seed: passing, pause: 4 })
        const first = work.run({ env: { CROSSFADE_FAILPOINT: `${point}:${passing}` } })
        const ended = await first.ended
        assert.equal(ended.signal, 'SIGKILL', `the point was not passed:\n${ended.stdout}${ended.stderr}`)
        const second = work.run()
        await until(async () => (second.output().includes('streaming') ? [] : ['not streaming yet']), {
          seconds: 60,
          worker: second,
        })
        const written = await writers.stop()
        await until(async () => await compareShops(source, target, written), { seconds: 40, worker: second })
        assert.equal((await second.stop()).code, 0)
      })
    }
  }
})
