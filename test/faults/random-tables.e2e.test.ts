import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import { scene, untilEqual } from '../support/scene.ts'
import { missing, needs, postgres } from '../support/servers.ts'
import { createRandomTables, randomSteps, randomTables, runSteps, tableSql } from '../support/random-tables.ts'
import { createTypes, typeColumns } from '../support/type-tables.ts'

describe('tables of random columns, with random rows and changes', needs('pg'), () => {
  for (const from of [18, 15, 14] as const) {
    const skip = from === 18 ? undefined : missing(`pg${from}`)
    it(`are the same at both ends, from version ${from} to 18`, skip === undefined ? {} : { skip }, async (t) => {
      const seed = Number(process.env['CROSSFADE_SEED'] ?? Date.now() % 1_000_000)
      t.diagnostic(`CROSSFADE_SEED=${seed}`)
      const source = await (await postgres(from)).database('random_source')
      const target = await (await postgres(18)).database('random_target')
      await Promise.all([createTypes(source), createTypes(target)])
      const sample = <Value>(arbitrary: fc.Arbitrary<Value>): Value => {
        const [value] = fc.sample(arbitrary, { seed, numRuns: 1 })
        assert.ok(value !== undefined)
        return value
      }
      const tables = sample(randomTables(await typeColumns(source)))
      for (const url of [source, target]) await createRandomTables(url, tables, from)
      const steps = sample(randomSteps(1200))
      await runSteps(source, tables, steps.slice(0, 300), 0)
      const more = `apply: { lanes: 2, batchRows: ${1 + (seed % 50)} }`
      await using pipeline = await scene({ source, target, mode: 'hybrid', include: '*.*', more })
      let worker = pipeline.run()
      // While they are copied, and after.
      let changes = await runSteps(source, tables, steps.slice(300, 600), 10_000)
      const names = tables.map(tableSql)
      await untilEqual(pipeline, worker, 150, names)
      changes += await runSteps(source, tables, steps.slice(600, 900), 20_000)
      await worker.kill9()
      changes += await runSteps(source, tables, steps.slice(900), 30_000)
      worker = pipeline.run()
      await untilEqual(pipeline, worker, 150, names)
      t.diagnostic(`${changes} changes in ${tables.length} tables`)
      const end = await worker.stop()
      assert.equal(end.code, 0, end.stderr)
    })
  }
})
