import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, it } from 'node:test'
import type { Failpoint } from '../../src/failpoint.ts'
import { definitionDiffers, keepWriting } from '../support/ddl.ts'
import { sql } from '../support/postgres.ts'
import { blocker, configure, createThings, follow, scene, type Scene } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { pretendLarge } from '../support/shop.ts'
import { until, type Worker } from '../support/worker.ts'

/** One table over three partitions, in three lanes. */
async function prepared(ddl: 'apply' | 'stop' = 'apply'): Promise<Scene> {
  const pg = await postgres(18)
  const [source, target] = [await pg.database('ddl_source'), await pg.database('ddl_target')]
  await createThings(source, 300)
  await sql(source, 'alter table thing add count int, add price numeric(6,2)')
  await pretendLarge(source, ['thing'])
  const log = '{ type: embedded, partitions: 3 }'
  return await scene({ source, target, mode: 'hybrid', log, more: `ddl: ${ddl}\napply: { lanes: 3 }\n` })
}
async function streaming(worker: Worker): Promise<void> {
  await until(async () => (/ streaming /.test(worker.printed()) ? [] : ['not live yet']), { seconds: 90, worker })
}
async function untilSame(pipeline: Scene, worker: Worker): Promise<void> {
  const both = async (): Promise<readonly string[]> => [
    ...(await definitionDiffers(pipeline.source, pipeline.target)),
    ...(await pipeline.differences()),
  ]
  await until(both, { seconds: 120, worker })
}
const changes = [
  `alter table thing add kind varchar(5) not null default 'it''s'`,
  'alter table thing rename price to amount',
  `begin; insert into thing (id) values (-1); alter table thing add b int default 3; insert into thing (id, b) values (-2, 4);
   alter table thing drop column count; update thing set b = 9 where id between 1 and 50; commit`,
  'alter table thing alter kind type text',
  'alter table thing alter amount type numeric(9,2)',
  'alter table thing alter kind drop not null',
]

describe('a worker that dies around a change of a table', { ...needs('pg'), concurrency: 2 }, () => {
  const deaths: readonly (readonly [Failpoint, number])[] = [
    ['ddl.before-record', 1],
    ['ddl.after-record', 1],
    ['ddl.after-record', 3],
    ['apply.before-arrival', 2],
    ['barrier.after-arrival', 2],
    ['barrier.before-effect', 1],
    ['barrier.between-effect-and-done', 1],
    ['barrier.before-commit', 3],
    ['apply.after-arrival', 2],
  ]
  for (const [point, passing] of deaths) {
    it(`H26: at ${point}, passing ${passing}: each change is made once, and each row has its own shape`, async (t) => {
      await using pipeline = await prepared()
      const first = pipeline.run([], { CROSSFADE_FAILPOINT: `${point}:${passing}` })
      await streaming(first)
      const writing = await keepWriting(pipeline.source)
      let dead = false
      void first.ended.then(() => (dead = true))
      for (const statement of changes) {
        const before = writing.count()
        await sql(pipeline.source, statement)
        await until(async () => (writing.count() > before + 2 ? [] : ['nothing is written']), { seconds: 60 })
      }
      await until(async () => (dead ? [] : [`the point was not passed: ${first.output()}`]), { seconds: 60 })
      assert.equal((await first.ended).signal, 'SIGKILL', first.output())
      const next = pipeline.run()
      await streaming(next)
      await sql(pipeline.source, 'alter table thing add last int')
      await writing.stop()
      await untilSame(pipeline, next)
      assert.equal((await next.stop()).code, 0)
      t.diagnostic(`killed at ${point}, passing ${passing}, beside ${writing.count()} writes`)
    })
  }

  it('H26: anywhere, again and again', async (t) => {
    const seed = Number(process.env['CROSSFADE_SEED'] ?? Date.now() % 100_000)
    t.diagnostic(`CROSSFADE_SEED=${seed}`)
    let state = seed >>> 0
    const random = (): number => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 4294967296
    await using pipeline = await prepared()
    let worker = pipeline.run()
    await streaming(worker)
    const writing = await keepWriting(pipeline.source)
    for (const [i, statement] of changes.entries()) {
      await sleep(random() * 400)
      await sql(pipeline.source, statement)
      await sleep(random() * 1200)
      if (i % 2 === 1) continue
      await worker.kill9()
      worker = pipeline.run()
      await sleep(random() * 3000)
    }
    await streaming(worker)
    await writing.stop()
    await untilSame(pipeline, worker)
    assert.equal((await worker.stop()).code, 0)
    t.diagnostic(`killed 3 times, beside ${writing.count()} writes`)
  })
})

describe('a change of a table that cannot be followed', { ...needs('pg'), concurrency: 2 }, () => {
  it('H26: a type with other values stops at its place, and goes on once an operator made it at the target', async () => {
    await using pipeline = await prepared()
    const worker = pipeline.run()
    await streaming(worker)
    await sql(pipeline.source, `update thing set count = id`)
    await sql(
      pipeline.source,
      `alter table thing alter count type text using 'no ' || count; insert into thing values (5001, 'x', 'many')`,
    )
    const end = await worker.ended
    assert.equal(end.code, 1, end.stderr)
    assert.match(end.stderr, /column count integer became text/)
    assert.match(end.stderr, /with the USING clause of the source’s own statement/)
    assert.deepEqual(await sql(pipeline.target, 'select count(*)::int as n from thing where count = id'), [{ n: 300 }])
    await sql(pipeline.target, `alter table thing alter count type text using 'no ' || count`)
    const next = pipeline.run()
    await streaming(next)
    await untilSame(pipeline, next)
    assert.equal((await next.stop()).code, 0)
  })

  it('H26: a column with values of its own in each row stops, and goes on once an operator filled it', async () => {
    await using pipeline = await prepared()
    const worker = pipeline.run()
    await streaming(worker)
    await sql(
      pipeline.source,
      `alter table thing add token text default md5(random()::text); insert into thing (id, token) values (5001, 'x')`,
    )
    const end = await worker.ended
    assert.equal(end.code, 1, end.stderr)
    assert.match(end.stderr, /then give the rows that are there the source’s values/)
    await sql(
      pipeline.target,
      `alter table thing add token text; alter table thing alter token set default md5(random()::text)`,
    )
    for (const { id, token } of await sql(pipeline.source, 'select id, token from thing where id <= 300'))
      await sql(pipeline.target, 'update thing set token = $2 where id = $1', [id, token])
    const next = pipeline.run()
    await streaming(next)
    await untilSame(pipeline, next)
    assert.equal((await next.stop()).code, 0)
  })

  it('H26: names passed on and given anew at once: a person who makes one change a start comes to the end', async () => {
    await using pipeline = await prepared('stop')
    const worker = pipeline.run()
    await streaming(worker)
    await sql(pipeline.source, 'update thing set count = id, price = id')
    await sql(
      pipeline.source,
      `begin; alter table thing rename price to former; alter table thing rename count to price; alter table thing add count int default 4;
       alter table thing drop name; alter table thing add name text default 'n'; insert into thing values (5001); commit;
       update thing set count = 5 where id < 9`,
    )
    let end = await worker.ended
    const run: string[] = []
    for (;;) {
      assert.equal(end.code, 1, end.stderr)
      const [statement = 'none', more = ''] = end.stderr.match(/ALTER TABLE .*;$/gm) ?? []
      assert.ok(!run.includes(statement), `${statement} again: ${end.stderr}`)
      run.push(statement)
      await sql(pipeline.target, / ADD COLUMN /.test(statement) ? `${statement} ${more}` : statement)
      if (run.length === 5) break
      end = await pipeline.command(['run'])
    }
    const next = pipeline.run()
    await streaming(next)
    await untilSame(pipeline, next)
    assert.equal((await next.stop()).code, 0)
  })

  it('H26: names exchanged at once stop, and undone before a row was written it goes on', async () => {
    await using pipeline = await prepared()
    const worker = pipeline.run()
    await streaming(worker)
    const exchange = `begin; alter table thing rename price to passage; alter table thing rename count to price;
       alter table thing rename passage to count; commit`
    await sql(pipeline.source, exchange)
    const end = await worker.ended
    assert.equal(end.code, 1, end.stderr)
    assert.match(end.stderr, /^✗ TABLE_CHANGED /m)
    assert.match(end.stderr, /took the name of another/)
    await sql(pipeline.source, exchange)
    const next = pipeline.run()
    await streaming(next)
    await sql(pipeline.source, 'update thing set price = 3 where id = 4')
    await untilSame(pipeline, next)
    assert.equal((await next.stop()).code, 0)
  })

  it('H26: NULL right behind a dropped NOT NULL: stops with the statement, and goes on once it was run', async () => {
    await using pipeline = await prepared('stop')
    await sql(pipeline.source, `update thing set count = id; alter table thing alter count set not null`)
    const worker = pipeline.run()
    await streaming(worker)
    await sql(
      pipeline.source,
      `insert into thing (id, count) values (5001, 1); alter table thing alter count drop not null; insert into thing (id) values (5002)`,
    )
    const end = await worker.ended
    assert.equal(end.code, 1, end.stderr)
    assert.match(end.stderr, /^✗ TABLE_CHANGED /m)
    assert.deepEqual(end.stderr.match(/ALTER TABLE .*;$/gm), [
      'ALTER TABLE "public"."thing" ALTER COLUMN "count" DROP NOT NULL;',
    ])
    assert.deepEqual(await sql(pipeline.target, 'select id from thing where count is null'), [])
    await sql(pipeline.target, 'alter table thing alter count drop not null')
    const next = pipeline.run()
    await streaming(next)
    await untilSame(pipeline, next)
    assert.equal((await next.stop()).code, 0)
  })

  it('H26: a table renamed stops, and goes on once it is named back', async () => {
    await using pipeline = await prepared()
    const worker = pipeline.run()
    await streaming(worker)
    await sql(pipeline.source, `alter table thing rename to other; insert into other (id) values (5001)`)
    const end = await worker.ended
    assert.equal(end.code, 1, end.stderr)
    assert.match(end.stderr, /^✗ TABLE_CHANGED /m)
    assert.match(end.stderr, /it is called public\.other now/)
    await sql(pipeline.source, `alter table other rename to thing; insert into thing (id) values (5002)`)
    const next = pipeline.run()
    await streaming(next)
    await untilSame(pipeline, next)
    assert.equal((await next.stop()).code, 0)
  })

  it('H26: a lookalike column stops, at each start again', async () => {
    await using pipeline = await prepared()
    const worker = pipeline.run()
    await streaming(worker)
    await sql(
      pipeline.source,
      `alter table thing drop column price; alter table thing add column price numeric(6,2) default 1`,
    )
    const end = await worker.ended
    assert.equal(end.code, 1, end.stderr)
    assert.match(end.stderr, /column price is another one now: dropped, and added again/)
    const again = await pipeline.command(['run'])
    assert.match(again.stderr, /^✗ TABLE_CHANGED /m)
  })

  /** What an operator does at the target beyond the statements that are printed. */
  const unfollowable: readonly (readonly [string, string, string])[] = [
    [
      'a lookalike column',
      'alter table thing drop column price; alter table thing add column price numeric(6,2) default 1',
      '',
    ],
    [
      'another key',
      'alter table thing drop constraint thing_pkey, add column code int generated always as identity, add primary key (id, code)',
      'alter table thing drop constraint thing_pkey, add primary key (id, code)',
    ],
    [
      'two tables swapped',
      `begin; alter table thing rename to former; create table thing (like former including all);
       insert into thing (id, name) select id * 2, 'anew' from former; commit`,
      '',
    ],
    ['rows rewritten in place', 'alter table thing alter name type text using upper(name)', ''],
  ]
  for (const [what, change, byHand] of unfollowable) {
    it(`H26: ${what} stops, and the table is taken in again by the words of the error, beside another that goes on`, async () => {
      await using pipeline = await prepared()
      await sql(
        pipeline.source,
        `create table other (id int primary key); insert into other select generate_series(1, 50)`,
      )
      const both = ['thing', 'other']
      const worker = pipeline.run()
      await streaming(worker)
      await sql(pipeline.source, `insert into thing (id) values (5001); insert into other values (51)`)
      await sql(pipeline.source, `${change}; insert into thing (id) values (5002); insert into other values (52)`)
      const end = await worker.ended
      assert.equal(end.code, 1, end.stderr)
      assert.match(end.stderr, /^✗ TABLE_CHANGED /m)
      const [, next = ''] = /^ {4}next +([^]*)/m.exec(end.stderr) ?? []
      assert.match(
        next,
        /name it under tables\.exclude and start; stop; empty the target’s table and give it the new definition; take it in again and start/,
      )
      const more = 'ddl: apply\napply: { lanes: 3 }'
      const include = ['public.thing', 'public.other']
      await configure(pipeline, { include, exclude: ['public.thing'], more })
      const without = pipeline.run()
      await sql(pipeline.source, `insert into thing (id) values (5003); insert into other values (53)`)
      await until(async () => await pipeline.differences(['other']), { seconds: 90, worker: without })
      assert.match(without.output(), /left out as the configuration says/)
      assert.equal((await without.stop()).code, 0)
      await sql(pipeline.target, 'truncate thing')
      for (const statement of next.match(/^ *ALTER TABLE .*;$/gm) ?? []) await sql(pipeline.target, statement)
      await sql(pipeline.target, byHand)
      await configure(pipeline, { include, more })
      const again = pipeline.run()
      await sql(
        pipeline.source,
        `insert into thing (id) values (5004); update thing set name = 'later' where id % 7 = 0; delete from other where id = 1`,
      )
      await until(
        async () => [
          ...(await pipeline.differences(both)),
          ...(await definitionDiffers(pipeline.source, pipeline.target)),
        ],
        { seconds: 120, worker: again },
      )
      await sql(pipeline.source, `delete from thing where id % 5 = 0; insert into other values (54)`)
      await until(async () => await pipeline.differences(both), { seconds: 60, worker: again })
      assert.equal((await again.stop()).code, 0)
    })
  }

  it('H26: a change while the table is copied stops before a wrong row, and undone it goes on', async () => {
    await using pipeline = await prepared()
    const first = pipeline.run([], { CROSSFADE_FAILPOINT: 'copy.before-live:1' })
    assert.equal((await first.ended).signal, 'SIGKILL')
    await sql(
      pipeline.source,
      `alter table thing add late int default 4; insert into thing (id, late) values (5001, 5)`,
    )
    const end = await pipeline.command(['run'])
    assert.equal(end.code, 1, end.stderr)
    assert.match(end.stderr, /^✗ TABLE_CHANGED /m)
    assert.match(end.stderr, /while it is copied: with late integer/)
    await sql(pipeline.source, `alter table thing drop column late`)
    const next = pipeline.run()
    await streaming(next)
    await untilSame(pipeline, next)
    assert.equal((await next.stop()).code, 0)
  })

  it('H26: a change while the table is copied, that stays: the table is taken in again by the words of the errors', async () => {
    await using pipeline = await prepared()
    await sql(
      pipeline.source,
      `create table other (id int primary key); insert into other select generate_series(1, 50)`,
    )
    const both = ['thing', 'other']
    const first = pipeline.run([], { CROSSFADE_FAILPOINT: 'copy.before-live:1' })
    assert.equal((await first.ended).signal, 'SIGKILL')
    await sql(
      pipeline.source,
      `alter table thing add late int default 4; insert into thing (id, late) values (5001, 5)`,
    )
    const end = await pipeline.command(['run'])
    assert.equal(end.code, 1, end.stderr)
    assert.match(end.stderr, /or name the table under tables\.exclude, start, stop, and take it in again/)
    const more = 'ddl: apply\napply: { lanes: 3 }'
    const include = ['public.thing', 'public.other']
    await configure(pipeline, { include, exclude: ['public.thing'], more })
    const without = pipeline.run()
    await sql(pipeline.source, `insert into thing (id) values (5002); insert into other values (51)`)
    await until(async () => await pipeline.differences(['other']), { seconds: 90, worker: without })
    assert.equal((await without.stop()).code, 0)
    await configure(pipeline, { include, more })
    // Each start says what is still missing.
    const full = blocker(await pipeline.refused(), 'target.empty')
    await follow(pipeline.target, full)
    const shape = await pipeline.refused()
    assert.match(JSON.stringify(shape.error), /late/)
    await sql(pipeline.target, 'alter table thing add late int default 4')
    const again = pipeline.run()
    await sql(pipeline.source, `insert into thing (id) values (5003); delete from thing where id = 1`)
    await until(
      async () => [
        ...(await pipeline.differences(both)),
        ...(await definitionDiffers(pipeline.source, pipeline.target)),
      ],
      { seconds: 120, worker: again },
    )
    assert.equal((await again.stop()).code, 0)
  })
})
