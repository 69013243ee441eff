import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { sql } from '../support/postgres.ts'
import { leaves, sales, salesStatements, tablesOf } from '../support/sales.ts'
import { untilEqual } from '../support/scene.ts'
import { needs } from '../support/servers.ts'
import { connected } from '../support/shop.ts'

describe('a partitioned table', { ...needs('pg'), concurrency: 2 }, () => {
  it('without one of its leaves is followed in the others', async () => {
    await using pipeline = await sales({ include: 'public.sales', exclude: 'public.north_high' })
    const worker = pipeline.run()
    const others = leaves.filter((leaf) => leaf !== 'north_high')
    await untilEqual(pipeline, worker, 40, others)
    await using client = await connected(pipeline.source)
    for (const statement of salesStatements) await client.query(statement)
    await client.query(`truncate north; insert into sales values ('north', 1, 1, 'only one')`)
    await untilEqual(pipeline, worker, 40, others)
    assert.deepEqual(await tablesOf(pipeline.target), others.toSorted())
    assert.equal((await worker.stop()).code, 0)
  })

  it('that is left out by its name leaves out its leaves', async () => {
    await using pipeline = await sales({ include: '*.*', exclude: 'public.sales' })
    const worker = pipeline.run()
    await untilEqual(pipeline, worker, 40, ['plain'])
    assert.deepEqual(await tablesOf(pipeline.target), ['plain'])
    await worker.stop()
  })

  it('in leaves named alone is followed in those', async () => {
    await using pipeline = await sales({ include: 'public.*th' })
    const worker = pipeline.run()
    await untilEqual(pipeline, worker, 40, ['south', 'north_low', 'north_high'])
    await using client = await connected(pipeline.source)
    for (const statement of salesStatements) await client.query(statement)
    await untilEqual(pipeline, worker, 40, ['south', 'north_low', 'north_high'])
    await worker.stop()
  })

  it('H26: stops at a new one among its leaves where they are captured in part, and takes it in at the next start', async () => {
    await using pipeline = await sales({ include: 'public.sales', exclude: 'public.north_high' })
    const worker = pipeline.run()
    const others = leaves.filter((leaf) => leaf !== 'north_high')
    await untilEqual(pipeline, worker, 40, others)
    await sql(
      pipeline.source,
      `create table west partition of sales for values in ('far west'); insert into sales values ('far west', 1, 1, 'first')`,
    )
    const end = await worker.ended
    assert.equal(end.code, 1, end.stderr)
    assert.match(
      end.stderr,
      /^✗ TABLE_CHANGED .*\n +object +public\.west\n +observed it became a part of public\.sales/m,
    )
    const again = pipeline.run()
    await untilEqual(pipeline, again, 80, [...others, 'west'])
    assert.equal((await again.stop()).code, 0)
  })

  for (const [what, change] of [
    ['a new one', `create table west partition of sales for values in ('far west')`],
    ['a table that is attached', `alter table sales attach partition west for values in ('far west')`],
    ['one that is detached', 'alter table sales detach partition south'],
    ['one that is dropped', 'drop table south'],
  ] as const) {
    it(`H26: stops at ${what} among its leaves`, async () => {
      await using pipeline = await sales({ include: 'public.sales' })
      await sql(pipeline.source, what === 'a table that is attached' ? 'create table west (like sales)' : '')
      const worker = pipeline.run()
      await untilEqual(pipeline, worker, 40, ['sales', ...leaves])
      await sql(pipeline.source, change)
      const end = await worker.ended
      assert.equal(end.code, 1, end.stderr)
      // Of a leaf that is gone either may be noticed first.
      const gone = /^✗ TABLE_MISSING .*\n +object +public\.south\n +observed dropped at the source/m
      if (what === 'one that is dropped' && gone.test(end.stderr)) return
      assert.match(end.stderr, /^✗ TABLE_CHANGED .*\n +object +public\.sales\n +observed its partitions changed/m)
    })
  }
})
