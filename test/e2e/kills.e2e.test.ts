import { describe, it } from 'node:test'
import { surviveKills } from '../support/kills.ts'
import { needs } from '../support/servers.ts'

describe('a worker that is killed again and again', needs('pg', 'kafka'), () => {
  it('loses nothing and doubles nothing', { timeout: 240_000 }, async (t) => {
    const seed = Number(process.env['CROSSFADE_SEED'] ?? Date.now() % 100_000)
    t.diagnostic(`CROSSFADE_SEED=${seed}`)
    await surviveKills({ seed, rows: 150_000, kills: 6, log: 'kafka', say: (text) => t.diagnostic(text) })
  })
})
