import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { differingTypes, digestsOfTypes } from '../support/digest-types.ts'
import { needs } from '../support/servers.ts'

const seed = Number(process.env['CROSSFADE_SEED'] ?? Date.now() % 100_000)

describe('the digest by the server and by the worker', needs('pg', 'pg14'), () => {
  it('is the same for 10,000 random values of every type, and on every version', async (t) => {
    t.diagnostic(`CROSSFADE_SEED=${seed}`)
    const [older, newer] = await Promise.all([digestsOfTypes(14, 10_000, seed), digestsOfTypes(18, 10_000, seed)])
    t.diagnostic(`${newer.size} types`)
    assert.deepEqual(differingTypes(older, newer), [])
    for (const { server } of newer.values()) assert.equal(server.rows, 10_000)
  })
})
