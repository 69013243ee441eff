import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { corrupt, corruptible, corruptibleTables, corruptions } from '../support/corruptions.ts'
import { sql, startPostgres } from '../support/postgres.ts'
import { scene, type Scene } from '../support/scene.ts'
import { needs } from '../support/servers.ts'
import { told, verified } from '../support/verified.ts'
import { until, type Worker } from '../support/worker.ts'

const rows = Number(process.env['CROSSFADE_VERIFY_ROWS'] ?? 300_000)
const seed = Number(process.env['CROSSFADE_SEED'] ?? Date.now() % 100_000)

function seeded(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 4294967296
  }
}

async function streaming(pipeline: Scene, worker: Worker, seconds: number): Promise<void> {
  await until(
    async () =>
      (await pipeline.command(['status', '--json'])).stdout.includes('"streaming"') ? [] : ['not streaming'],
    { seconds, worker },
  )
}

/** Both as lines, so that a difference shows the rows that are missing or too many. */
function assertTold(found: readonly string[], expected: readonly string[]): void {
  const [there, wanted] = [new Set(found), new Set(expected)]
  assert.deepEqual(
    { missed: expected.filter((line) => !there.has(line)), invented: found.filter((line) => !wanted.has(line)) },
    { missed: [], invented: [] },
  )
  assert.equal(found.length, expected.length)
}

describe('a verification of many rows', needs('pg'), () => {
  it('names 1,000 rows corrupted at random, with their columns, and no other', async (t) => {
    t.diagnostic(`${rows} rows in the largest table, CROSSFADE_SEED=${seed}`)
    await using server = await startPostgres()
    const [source, target] = [await server.createDatabase('many_from'), await server.createDatabase('many_to')]
    await sql(source, corruptibleTables(rows))
    await using pipeline = await scene({ source, target, mode: 'hybrid' })
    const worker = pipeline.run()
    await streaming(pipeline, worker, 120 + rows / 20_000)
    const expected = await corrupt(target, { rows, count: 1000, random: seeded(seed) })
    t.diagnostic(`kinds: ${corruptions.map(({ kind }) => kind).join(', ')}`)
    const began = performance.now()
    await verified(pipeline)
    const journal = await pipeline.command(['verify', 'report', '--json'])
    t.diagnostic(`found in ${((performance.now() - began) / 1000).toFixed(1)} s`)
    assertTold(told(JSON.parse(journal.stdout)).toSorted(), expected)
    const repaired = await pipeline.command(['repair', '--json'])
    assert.equal(repaired.code, 0, repaired.stdout + repaired.stderr)
    assert.deepEqual(await pipeline.differences(corruptible), [])
    const mended = await verified(pipeline)
    assert.deepEqual([mended.code, mended.report.verdict], [0, 'equal'], JSON.stringify(mended.report))
    assert.equal((await worker.stop()).code, 0)
  })
})
