import { describe, it } from 'node:test'
import { surviveKills } from '../support/kills.ts'
import { needs } from '../support/servers.ts'

const seed = Number(process.env['CROSSFADE_SEED'] ?? Date.now() % 100_000)

describe('a worker that is killed thirty times and more', needs('pg', 'kafka'), () => {
  for (const log of ['kafka', 'embedded'] as const) {
    it(`loses nothing and doubles nothing through the ${log} log`, { timeout: 600_000 }, async (t) => {
      t.diagnostic(`CROSSFADE_SEED=${seed}`)
      await surviveKills({ seed, rows: 400_000, kills: 30, log, say: (text) => t.diagnostic(text) })
    })
  }
})
