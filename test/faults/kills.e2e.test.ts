import { describe, it } from 'node:test'
import { surviveKills } from '../support/kills.ts'
import { needs } from '../support/servers.ts'

const seed = Number(process.env['CROSSFADE_SEED'] ?? Date.now() % 100_000)

describe('workers that are killed two hundred times', needs('pg', 'kafka'), () => {
  for (const log of ['kafka', 'embedded'] as const) {
    it(`lose nothing and double nothing through the ${log} log`, async (t) => {
      t.diagnostic(`CROSSFADE_SEED=${seed}`)
      await surviveKills({ seed, rows: 60_000, kills: 104, pipelines: 2, log, say: (text) => t.diagnostic(text) })
    })
  }
})
