import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { leaves, sales, salesStatements, tablesOf } from '../support/sales.ts'
import { untilEqual } from '../support/scene.ts'
import { needs } from '../support/servers.ts'
import { connected } from '../support/shop.ts'

describe('a partitioned table', needs('pg'), () => {
  it('H26: named by its root is followed in all its leaves, wherever its rows move', async () => {
    await using pipeline = await sales({ include: 'public.sales', more: 'apply: { lanes: 3, batchRows: 4 }' })
    const checked = await pipeline.command(['check'])
    assert.equal(checked.code, 0, checked.stdout + checked.stderr)
    let worker = pipeline.run()
    await untilEqual(pipeline, worker, 40, ['sales', ...leaves])
    assert.deepEqual(await tablesOf(pipeline.target), leaves.toSorted())
    await using client = await connected(pipeline.source)
    for (const statement of salesStatements) await client.query(statement)
    await untilEqual(pipeline, worker, 40, ['sales', ...leaves])
    assert.equal((await worker.stop()).code, 0)
    worker = pipeline.run()
    await client.query(`truncate sales; insert into sales values ('north', 1, 1, 'only one')`)
    await untilEqual(pipeline, worker, 40, ['sales', ...leaves])
    assert.equal((await worker.stop()).code, 0)
  })
})
