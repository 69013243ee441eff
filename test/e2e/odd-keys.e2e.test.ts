import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { sql } from '../support/postgres.ts'
import { scene, untilEqual } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { connected } from '../support/shop.ts'

/** Tables whose keys are odd in one way each, written to by statements that are odd in another. */
const ddl = `
create table far (k text primary key, n int);
alter table far alter k set storage external;
insert into far select repeat(chr(96 + i), 2500), i from generate_series(1, 5) i;
create table far_of_two (a int, k text, big text, n int, primary key (k, a));
alter table far_of_two alter k set storage external, alter big set storage external;
insert into far_of_two select i, repeat(chr(96 + i), 2500), repeat('b', 5000), i from generate_series(1, 5) i;
create table backwards (a int, b int, primary key (b, a));
insert into backwards values (1, 2), (2, 1), (3, 4);
create table floats (k float8 primary key, v text, big text);
alter table floats alter big set storage external;
insert into floats values ('NaN', 'a', repeat('x', 5000)), ('-0', 'b', repeat('y', 5000)), ('Infinity', 'c', null);
create table documents (j jsonb primary key, n int);
insert into documents values ('{"a": 1}', 1), ('1.0', 2);
create table rational (n numeric primary key, v text, big text);
alter table rational alter big set storage external;
insert into rational values (1.0, 'a', repeat('z', 5000)), (2, 'b', repeat('z', 5000)), ('NaN', 'c', null);
create table wide (id int primary key, ${Array.from({ length: 1599 }, (_, i) => `c${i} int`).join(', ')});
insert into wide (id, c5, c1598) values (1, 2, 3);
create table computed (id int primary key, a int, twice int generated always as (a * 2) virtual);
insert into computed values (1, 2);
`
const statements = [
  // The key is too large for its row: an update sends it in the old key alone.
  `update far set n = n + 1`,
  `update far set k = k || '!' where n > 3`,
  `delete from far where n = 2`,
  `update far_of_two set n = n + 1`,
  `update far_of_two set a = a + 10 where a < 4`,
  `update far_of_two set big = 'small', a = a + 10 where a < 13`,
  `delete from far_of_two where a = 4`,
  `update backwards set a = 9 where a = 1`,
  `delete from backwards where a = 2`,
  // Equal keys that print differently, with large values that are not sent again.
  `update floats set v = v || '.'`,
  `update floats set k = 0 where k = 0`,
  `update floats set k = 5 where k = 'NaN'`,
  `update documents set j = '1.000', n = 5 where n = 2`,
  `delete from documents where j = '1'`,
  `begin; update rational set n = 1.00 where n = 1; update rational set v = 'q' where n = 1; commit`,
  `begin; delete from rational where n = 2; insert into rational values (2.000, 'w', 'e'); update rational set n = 2.0 where n = 2; commit`,
  `update wide set c7 = 8; update wide set id = 2; insert into wide (id) values (3)`,
  `update computed set a = 7; update computed set id = 5; insert into computed values (6, 1)`,
]

describe('odd keys', needs('pg'), () => {
  it('are the same at both ends, however batches are cut', async () => {
    const pg = await postgres(18)
    const [source, target] = [await pg.database('keys_source'), await pg.database('keys_target')]
    await sql(source, ddl)
    const tables = (
      await sql<{ name: string }>(source, `select tablename as name from pg_tables where schemaname = 'public'`)
    ).map(({ name }) => name)
    await using pipeline = await scene({ source, target, mode: 'hybrid', more: 'apply: { lanes: 2, batchRows: 3 }' })
    const worker = pipeline.run()
    await untilEqual(pipeline, worker, 40, tables)
    await using client = await connected(source)
    for (const statement of statements) await client.query(statement)
    await untilEqual(pipeline, worker, 40, tables)
    const end = await worker.stop()
    assert.equal(end.code, 0, end.stderr)
  })
})
