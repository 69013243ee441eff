import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { sql } from '../support/postgres.ts'
import { scene, untilEqual, type Scene } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { connected } from '../support/shop.ts'

/** Partitions below partitions, a default one, and leaves whose columns stand in another order behind dropped ones. */
const ddl = `
create table sales (region text not null, id int not null, amount numeric, note text, primary key (region, id)) partition by list (region);
create table north partition of sales for values in ('north') partition by range (id);
create table north_low partition of north for values from (minvalue) to (100);
create table north_high (gone int, note text, amount numeric, also_gone text, id int not null, region text not null);
alter table north_high drop column gone, drop column also_gone;
alter table north_high alter note set storage external;
alter table north attach partition north_high for values from (100) to (maxvalue);
create table south (id int not null, region text not null, note text, amount numeric);
alter table sales attach partition south for values in ('south');
create table rest partition of sales default;
create table plain (id int primary key);
insert into sales select (array['north', 'south', 'east', 'west'])[1 + i % 4], i, i / 3.0, case when i % 10 = 0 then repeat('n', 3000) else 'n' end from generate_series(1, 200) i;
insert into plain values (1);
`
const leaves = ['north_low', 'north_high', 'south', 'rest']
const statements = [
  `update sales set region = 'south' where id in (3, 5, 150)`,
  `update sales set region = 'north' where id in (5, 20, 160)`,
  `update sales set region = 'nowhere', note = 'moved' where id = 40`,
  `update sales set id = id + 1000 where region = 'north' and id < 100 and id % 3 = 0 and id > 95`,
  `begin; update sales set region = 'south' where id = 60; update sales set region = 'rest' where id = 60; update sales set region = 'north' where id = 60; update sales set amount = 1.50 where id = 60; commit`,
  `delete from sales where id between 70 and 75`,
  `insert into sales values ('north', 70, 1.0, 'again'), ('south', 71, 2, null), ('x', 72, null, repeat('z', 5000))`,
  `begin; truncate north; insert into sales values ('north', 1, 1, 'first'), ('north', 500, 5, 'second'); commit`,
  `truncate rest, south; insert into sales values ('south', 1, 1, 's')`,
]

async function prepared(options: Partial<Parameters<typeof scene>[0]>): Promise<Scene> {
  const pg = await postgres(18)
  const [source, target] = [await pg.database('parts_source'), await pg.database('parts_target')]
  await sql(source, ddl)
  return await scene({ source, target, mode: 'hybrid', ...options })
}
const tablesOf = async (url: string): Promise<readonly string[]> =>
  (
    await sql<{ name: string }>(
      url,
      `select relname as name from pg_class c where relkind = 'r' and relnamespace = 'public'::regnamespace order by 1`,
    )
  ).map(({ name }) => name)

describe('a partitioned table', { ...needs('pg'), timeout: 300_000, concurrency: 2 }, () => {
  it('H26: named by its root is followed in all its leaves, wherever its rows move', async () => {
    await using pipeline = await prepared({ include: 'public.sales', more: 'apply: { lanes: 3, batchRows: 4 }' })
    const checked = await pipeline.command(['check'])
    assert.equal(checked.code, 0, checked.stdout + checked.stderr)
    let worker = pipeline.run()
    await untilEqual(pipeline, worker, 40, ['sales', ...leaves])
    assert.deepEqual(await tablesOf(pipeline.target), leaves.toSorted())
    await using client = await connected(pipeline.source)
    for (const statement of statements) await client.query(statement)
    await untilEqual(pipeline, worker, 40, ['sales', ...leaves])
    assert.equal((await worker.stop()).code, 0)
    worker = pipeline.run()
    await client.query(`truncate sales; insert into sales values ('north', 1, 1, 'only one')`)
    await untilEqual(pipeline, worker, 40, ['sales', ...leaves])
    assert.equal((await worker.stop()).code, 0)
  })

  it('without one of its leaves is followed in the others', async () => {
    await using pipeline = await prepared({ include: 'public.sales', exclude: 'public.north_high' })
    const worker = pipeline.run()
    const others = leaves.filter((leaf) => leaf !== 'north_high')
    await untilEqual(pipeline, worker, 40, others)
    await using client = await connected(pipeline.source)
    for (const statement of statements) await client.query(statement)
    await client.query(`truncate north; insert into sales values ('north', 1, 1, 'only one')`)
    await untilEqual(pipeline, worker, 40, others)
    assert.deepEqual(await tablesOf(pipeline.target), others.toSorted())
    assert.equal((await worker.stop()).code, 0)
  })

  it('that is left out by its name leaves out its leaves', async () => {
    await using pipeline = await prepared({ include: '*.*', exclude: 'public.sales' })
    const worker = pipeline.run()
    await untilEqual(pipeline, worker, 40, ['plain'])
    assert.deepEqual(await tablesOf(pipeline.target), ['plain'])
    await worker.stop()
  })

  it('in leaves named alone is followed in those', async () => {
    await using pipeline = await prepared({ include: 'public.*th' })
    const worker = pipeline.run()
    await untilEqual(pipeline, worker, 40, ['south', 'north_low', 'north_high'])
    await using client = await connected(pipeline.source)
    for (const statement of statements) await client.query(statement)
    await untilEqual(pipeline, worker, 40, ['south', 'north_low', 'north_high'])
    await worker.stop()
  })

  for (const [what, change] of [
    ['a new one', `create table west partition of sales for values in ('far west')`],
    ['a table that is attached', `alter table sales attach partition west for values in ('far west')`],
    ['one that is detached', 'alter table sales detach partition south'],
    ['one that is dropped', 'drop table south'],
  ] as const) {
    it(`H26: stops at ${what} among its leaves`, async () => {
      await using pipeline = await prepared({ include: 'public.sales' })
      await sql(pipeline.source, what === 'a table that is attached' ? 'create table west (like sales)' : '')
      const worker = pipeline.run()
      await untilEqual(pipeline, worker, 40, ['sales', ...leaves])
      await sql(pipeline.source, change)
      const end = await worker.ended
      assert.equal(end.code, 1, end.stderr)
      assert.match(end.stderr, /^✗ TABLE_CHANGED .*\n +object +public\.sales\n +observed its partitions changed/m)
    })
  }
})
