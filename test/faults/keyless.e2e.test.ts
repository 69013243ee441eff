import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { sql } from '../support/postgres.ts'
import { scene, untilEqual } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { connected } from '../support/shop.ts'

/** Rows that are there several times, nulls, and rows that are equal and print differently; types without equality among them. */
const ddl = `
create extension citext;
create table twins (a int, b text, j json, p point);
create table prints (n numeric, f float8, c citext, i interval, b bpchar, jb jsonb, r numrange);
create table late (id int primary key deferrable initially deferred, v text);
create table nulls (a int, b int, unique nulls not distinct (a, b));
create table wide (a int, big text);
alter table wide alter big set storage external;
alter table twins replica identity full; alter table prints replica identity full; alter table late replica identity full;
alter table nulls replica identity full; alter table wide replica identity full;
insert into twins select nullif(i % 5, 0), case when i % 3 > 0 then 'b' end, (case when i % 2 > 0 then '{"a": 1}' else '{"a":1}' end)::json, point(i % 2, 0) from generate_series(1, 2000) i;
insert into prints select n::numeric, f::float8, c::citext, i::interval, b, j::jsonb, r::numrange
  from (values ('1.0', '0', 'A', '1 day', 'x', '{"a": 1.0}', '[1,2)'), ('1.00', '-0', 'a', '24:00', 'x ', '{"a": 1.00}', '[1.0,2.00)')) v (n, f, c, i, b, j, r),
       generate_series(1, 3);
insert into late select i, 'v' from generate_series(1, 50) i;
insert into nulls select nullif(i, 3), nullif(i, 4) from generate_series(1, 9) i;
insert into wide select i % 4, repeat('w', 3000) from generate_series(1, 200) i;
`
const tables = ['twins', 'prints', 'late', 'nulls', 'wide']
const one = (table: string, condition: string): string =>
  `ctid = (select ctid from ${table} where ${condition} order by ctid limit 1)`
const statements = [
  `delete from twins where ${one('twins', `a = 1 and j::text = '{"a":1}'`)}; update twins set b = 'one' where ${one('twins', 'a is null and b is null')}`,
  `update twins set p = point(9, '-0') where a = 2; insert into twins select * from twins where a = 3 limit 7; delete from twins where a is null and b is null`,
  `update prints set f = 5 where ${one('prints', `n::text = '1.00'`)}; delete from prints where ${one('prints', `c::text = 'a'`)}; update prints set n = 1.000 where ${one('prints', `f::text = '-0'`)}`,
  `begin; update prints set i = '1440 min'; insert into prints select * from prints; delete from prints where ${one('prints', `jb::text like '%1.00%'`)}; commit`,
  `update late set id = id + 1`,
  `begin; delete from late where id = 10; insert into late values (10, 'x'), (11, 'twice for a while'); update late set id = 99 where id = 11 and v = 'v'; commit`,
  `update nulls set a = 100 where a is null; update nulls set a = null where b = 5; delete from nulls where a = 1`,
  `update wide set a = a + 1 where ${one('wide', 'a = 2')}; update wide set big = 'short' where ${one('wide', 'a = 1')}; delete from wide where ${one('wide', 'a = 3')}`,
]

describe('tables without a key', needs('pg'), () => {
  it('H8: keep their rows in number and print, through deaths in the copy and in batches of every size', async (t) => {
    const pg = await postgres(18)
    const [source, target] = [await pg.database('keyless_source'), await pg.database('keyless_target')]
    await sql(source, ddl)
    await using client = await connected(source)
    for (const [batchRows, point] of [
      [1, 'copy.in-chunk:2'],
      [2000, 'copy.before-live:1'],
    ] as const) {
      await sql(target, `drop schema public cascade; create schema public; drop schema if exists crossfade cascade`)
      await using pipeline = await scene({ source, target, mode: 'hybrid', more: `apply: { batchRows: ${batchRows} }` })
      const first = await pipeline.run([], { CROSSFADE_FAILPOINT: point }).ended
      assert.equal(first.signal, 'SIGKILL', first.stdout + first.stderr)
      t.diagnostic(`died at ${point}`)
      // Once more, some are refused.
      const run = async (all: readonly string[]): Promise<void> => {
        for (const statement of all) await client.query(statement).catch(async () => await client.query('rollback'))
      }
      // While nobody copies: what is copied again must not stand beside what was copied before.
      await run(statements.slice(0, 5))
      let worker = pipeline.run()
      await untilEqual(pipeline, worker, 60, tables)
      await run(statements)
      await untilEqual(pipeline, worker, 60, tables)
      await worker.kill9()
      await run(statements.toReversed())
      worker = pipeline.run()
      await untilEqual(pipeline, worker, 60, tables)
      assert.equal((await worker.stop()).code, 0)
    }
  })
})
