import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { sql } from '../support/postgres.ts'
import { assertRefusal, blocker, configure, createThings, scene, untilEqual, type Scene } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { connected } from '../support/shop.ts'
import { until } from '../support/worker.ts'

async function prepared(): Promise<Scene> {
  const pg = await postgres(18)
  const [source, target] = [await pg.database('tables_source'), await pg.database('tables_target')]
  await createThings(source)
  return await scene({ source, target, mode: 'hybrid' })
}

async function published({ source, name }: Scene): Promise<readonly string[]> {
  const query = `select tablename from pg_publication_tables where pubname = 'crossfade_${name}' order by 1`
  return (await sql<{ tablename: string }>(source, query)).map(({ tablename }) => tablename)
}

describe('tables of a live pipeline', { ...needs('pg'), concurrency: 2 }, () => {
  it('H9: added while a transaction that wrote to them is open, they lack nothing of it, and others go on meanwhile', async () => {
    await using pipeline = await prepared()
    const { source } = pipeline
    await configure(pipeline, { include: ['public.thing'] })
    const first = pipeline.run()
    await untilEqual(pipeline, first)
    assert.equal((await first.stop()).code, 0)
    await sql(
      source,
      `create table more (id int primary key, name text); insert into more select i, 'more' from generate_series(1, 500) i;
       create table nothing (id int primary key, name text)`,
    )
    await using open = await connected(source)
    await open.query(
      `begin; insert into more values (1001, 'before it was published'); insert into nothing values (1, 'too')`,
    )

    await configure(pipeline, { include: ['public.*'] })
    const second = pipeline.run()
    await until(async () => ((await published(pipeline)).length === 3 ? [] : ['not published']), {
      seconds: 40,
      worker: second,
    })
    await open.query(
      `insert into more values (1002, 'after it was published'); update more set name = 'changed' where id = 7`,
    )
    await sql(source, `insert into more values (1003, 'by another'); update thing set name = name || '!' where id < 50`)
    await untilEqual(pipeline, second)
    await open.query('commit')
    await untilEqual(pipeline, second, 80, ['thing', 'more', 'nothing'])
    await sql(source, `insert into nothing values (2, 'live'); delete from more where id % 3 = 0`)
    await untilEqual(pipeline, second, 40, ['thing', 'more', 'nothing'])
    assert.equal((await second.stop()).code, 0)
  })

  it('are left out when they are excluded, also one that was dropped, and taken in again with a copy of their own', async () => {
    await using pipeline = await prepared()
    const { source, target } = pipeline
    await sql(
      source,
      `create table other (id int primary key, name text); insert into other select i, 'other' from generate_series(1, 300) i;
       create table dropped (id int primary key); insert into dropped select generate_series(1, 20)`,
    )
    const first = pipeline.run()
    await untilEqual(pipeline, first, 80, ['thing', 'other', 'dropped'])
    assert.equal((await first.stop()).code, 0)
    // In the log of the source, and not sent yet: changes that can no longer be taken.
    await sql(
      source,
      `begin; insert into thing values (5001, 'both'); insert into other values (5001, 'both'); insert into thing values (5002, 'both'); commit;
       insert into dropped values (100); truncate thing, other; insert into thing select i, 'anew' from generate_series(1, 100) i;
       insert into other select i, 'anew' from generate_series(1, 50) i; drop table dropped`,
    )
    const refused = await pipeline.refused()
    assertRefusal(refused, 'TABLE_MISSING', 1)
    assert.equal(refused.error.object, 'public.dropped')
    assert.match(refused.error.next ?? '', /tables\.exclude/)

    await configure(pipeline, { include: ['public.*'], exclude: ['public.other', 'public.dropped'] })
    const second = pipeline.run()
    await untilEqual(pipeline, second)
    assert.match(second.output(), /left out as the configuration says/)
    assert.deepEqual(await published(pipeline), ['thing'])
    await sql(
      source,
      `alter table other add column more text default 'm'; insert into other values (900, 'unseen'), (901, 'unseen')`,
    )
    await sql(source, `update thing set name = 'further'; truncate thing, other; insert into thing values (1, 'last')`)
    await sql(source, `insert into other select i, 'again' from generate_series(1, 70) i`)
    await untilEqual(pipeline, second)
    const left = await sql<{ rows: number; most: number }>(
      target,
      'select count(*)::int as rows, max(id) as most from other',
    )
    assert.deepEqual(left, [{ rows: 300, most: 300 }])
    assert.equal((await second.stop()).code, 0)

    await configure(pipeline, { include: ['public.*'], exclude: ['public.dropped'] })
    await sql(target, 'alter table other add column more text')
    await sql(source, `update other set name = 'while nobody looked' where id < 10`)
    const full = await pipeline.refused()
    assertRefusal(full, 'CHECK_FAILED', 1)
    assert.match(JSON.stringify(full.error), /public\.other.*TRUNCATE/i)
    await sql(target, 'truncate other')
    const third = pipeline.run()
    await untilEqual(pipeline, third, 80, ['thing', 'other'])
    await sql(
      source,
      `begin; delete from thing; update other set name = 'live'; commit; truncate thing, other; insert into other values (1, 'end', 'n')`,
    )
    await untilEqual(pipeline, third, 40, ['thing', 'other'])
    assert.equal((await third.stop()).code, 0)
  })

  it('in mode incremental are refused when they were not followed, before anything is written; mode hybrid copies them', async () => {
    await using pipeline = await prepared()
    const { source, target, name } = pipeline
    const other = `create table other (id int primary key, name text); insert into other select i, 'other' from generate_series(1, 300) i`
    await sql(source, other)
    await createThings(target)
    await sql(target, other)
    const both = { include: ['public.thing', 'public.other'], mode: 'incremental' } as const
    await configure(pipeline, both)
    const first = pipeline.run()
    await until(async () => (/ streaming /.test(first.output()) ? [] : ['not yet']), { seconds: 80, worker: first })
    await sql(source, `insert into thing values (5001, 'both'); insert into other values (5001, 'both')`)
    await untilEqual(pipeline, first, 80, ['thing', 'other'])
    assert.equal((await first.stop()).code, 0)
    await configure(pipeline, { ...both, exclude: ['public.other'] })
    const second = pipeline.run()
    await sql(
      source,
      `insert into thing values (5002, 'thing'); insert into other values (5002, 'while it was left out')`,
    )
    await untilEqual(pipeline, second)
    assert.equal((await second.stop()).code, 0)

    await configure(pipeline, both)
    const state = async (): Promise<unknown> => [
      await published(pipeline),
      await sql(target, 'select * from crossfade.copy where pipeline = $1 order by 1, 2, 3', [name]),
      await sql(
        target,
        `select key, revision from crossfade.state where pipeline = $1 and key <> 'run' and key not like 'lease/%' order by 1`,
        [name],
      ),
    ]
    const before = await state()
    const check = await pipeline.command(['check'])
    assert.equal(check.code, 1, check.stdout)
    assert.match(check.stdout, /tables\.added +public\.other is not followed so far/)
    const told = blocker(await pipeline.refused(), 'tables.added')
    assert.match(told.next ?? '', /^mode: hybrid/)
    assert.deepEqual(await state(), before)

    await configure(pipeline, { ...both, mode: 'hybrid' })
    assert.match(blocker(await pipeline.refused(), 'target.empty').next ?? '', /TRUNCATE/)
    await sql(target, 'truncate other')
    const third = pipeline.run()
    await sql(source, `update other set name = 'later' where id < 20; delete from thing where id < 20`)
    await untilEqual(pipeline, third, 80, ['thing', 'other'])
    assert.equal((await third.stop()).code, 0)
    await configure(pipeline, both)
    const fourth = pipeline.run()
    await sql(source, `delete from other where id > 250; insert into thing values (5003, 'last')`)
    await untilEqual(pipeline, fourth, 80, ['thing', 'other'])
    assert.equal((await fourth.stop()).code, 0)
  })
})
