import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { sql } from '../support/postgres.ts'
import { scene, untilEqual } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { connected, pretendLarge } from '../support/shop.ts'

/** Key types whose equal values are equal in bytes, with an expression for the nth of them: their tables are spread over partitions. */
const spread: Readonly<Record<string, string>> = {
  int2: 'n',
  int4: 'n - 50',
  int8: 'n * 1000000007::bigint',
  oid: '(n + 3000000000)::bigint::oid',
  'numeric(12,2)': 'n / 4.0',
  text: `'kéy "' || n || ''''`,
  'varchar(20)': `repeat(' ', n % 3) || n`,
  'char(6)': `'c' || n`,
  name: `'n' || n`,
  bytea: `decode(md5(n::text), 'hex')`,
  uuid: 'md5(n::text)::uuid',
  date: `date '1999-12-31' + n`,
  time: `time '00:00' + n * interval '1.000001 s'`,
  timetz: `(time '00:00' + n * interval '1 min')::text::timetz`,
  'timestamp(3)': `timestamp '0044-03-15 BC' + n * interval '1 day 1 ms'`,
  timestamptz: `timestamptz '2020-03-29 00:00+00' + n * interval '11 min'`,
  inet: `('10.0.' || n % 200 || '.1/16')::inet`,
  cidr: `('10.' || n % 200 || '.0.0/16')::cidr`,
  macaddr: `('08:00:2b:01:02:' || lpad(to_hex(n % 256), 2, '0'))::macaddr`,
  macaddr8: `('08:00:2b:01:02:03:04:' || lpad(to_hex(n % 256), 2, '0'))::macaddr8`,
  'bit(16)': 'n::bit(16)',
  'bit varying': 'n::bit(12)::varbit',
  money: 'n::money',
  pg_lsn: `('0/' || to_hex(n))::pg_lsn`,
  xid8: `n::text::xid8`,
  positive: 'n',
}
/** Key types whose equal values may print differently: pinned, and applied in order. */
const pinned: Readonly<Record<string, string>> = {
  float4: 'n / 8.0',
  float8: 'n * 1e300',
  numeric: 'n / 8.0',
  interval: `n * interval '1 day'`,
  jsonb: `jsonb_build_object('n', n)`,
  'int4[]': 'array[n, null, -n]',
  'text[]': `array['t' || n, null]`,
  int4range: 'int4range(n, n + 2)',
  numrange: 'numrange(n, n + 0.50)',
  tstzrange: `tstzrange('2020-01-01', '2020-01-01'::timestamptz + n * interval '1 day')`,
  int8multirange: 'int8multirange(int8range(n, n + 2), int8range(1000 + n, 1001 + n))',
  pair: `row(n, 'p' || n)::pair`,
  citext: `'Ci' || n`,
  bpchar: `'b' || n`,
  tsvector: `to_tsvector('simple', 'w' || n)`,
  hstore: `hstore('n', n::text)`,
  moods: `row(n, 'x')::moods`,
}
/** Of these, the same value in another print. */
const reprinted: Readonly<Record<string, string>> = {
  numeric: 'trim_scale(n / 8.0)',
  interval: `n * interval '24 hours'`,
  jsonb: `jsonb_build_object('n', n + 0.00)`,
  numrange: 'numrange(n, n + 0.5)',
  citext: `upper('Ci' || n)`,
  bpchar: `'b' || n || '  '`,
}

describe('keys', needs('pg'), () => {
  for (const [batchRows, lanes] of [
    [1, 3],
    [2000, 2],
  ] as const) {
    it(`H6: of every hashable type are followed, in batches of ${batchRows}`, async () => {
      const pg = await postgres(18)
      const [source, target] = [await pg.database('keys_source'), await pg.database('keys_target')]
      await sql(
        source,
        `create extension citext; create extension hstore; create domain positive as int check (value > 0); create type pair as (a int, b text); create domain moods as pair`,
      )
      const types = Object.entries({ ...spread, ...pinned })
      const name = (i: number): string => `k${i}`
      await using client = await connected(source)
      for (const [i, [type, nth]] of types.entries()) {
        await client.query(`create table ${name(i)} (k ${type} primary key, v text, big text) with (autovacuum_enabled = false);
          alter table ${name(i)} alter big set storage external;
          insert into ${name(i)} select ${nth}, 'v' || n, case when n % 5 = 0 then repeat('b', 3000) end from generate_series(1, 60) n`)
      }
      const tables = types.map((_, i) => name(i))
      await pretendLarge(source, tables)
      await using pipeline = await scene({
        source,
        target,
        mode: 'hybrid',
        log: '{ type: embedded, partitions: 3 }',
        more: `apply: { lanes: ${lanes}, batchRows: ${batchRows} }\nsnapshot: { chunkRows: 70000 }`,
      })
      const worker = pipeline.run()
      await untilEqual(pipeline, worker, 60, tables)
      const partitions = await sql(target, 'select count(*)::int as n from crossfade.checkpoint')
      assert.deepEqual(partitions, [{ n: 3 * Object.keys(spread).length + Object.keys(pinned).length }])
      const at = (nth: string, n: string): string => nth.replaceAll(/\bn\b/g, n)
      for (const [i, [, nth]] of types.entries()) {
        const t = name(i)
        const of = (n: number): string => at(nth, String(n))
        await client.query(`insert into ${t} values (${of(61)}, 'new', repeat('c', 3000))`)
        await client.query(`update ${t} set v = v || '!' where k = ${of(3)}`)
        await client.query(`update ${t} set k = ${of(70)} where k = ${of(4)}`)
        await client.query(`update ${t} set k = ${of(71)}, v = 'moved' where k = ${of(5)}`)
        await client.query(`delete from ${t} where k = ${of(6)}`)
        // Swapped by way of a third, within one transaction: plain rows, and rows with a large value that is not sent again.
        for (const [a, b] of [
          [7, 8],
          [10, 15],
        ] as const)
          await client.query(
            `begin; update ${t} set k = ${of(99)} where k = ${of(a)}; update ${t} set k = ${of(a)} where k = ${of(b)}; update ${t} set k = ${of(b)} where k = ${of(99)}; commit`,
          )
        await client.query(
          `begin; delete from ${t} where k = ${of(20)}; insert into ${t} values (${of(20)}, 'again', null); update ${t} set v = 'and again' where k = ${of(20)}; commit`,
        )
        await client.query(`delete from ${t} where k = ${of(25)}`)
        await client.query(`insert into ${t} values (${of(25)}, 'later', 'small')`)
        await client.query(`update ${t} set big = 'other', k = ${of(80)} where k = ${of(30)}`)
      }
      // In two partitions, or in batches of two lanes, one of them would delete what the other wrote.
      for (const [i, [type, nth]] of types.entries()) {
        const other = reprinted[type]
        if (other === undefined) continue
        const numbers = Array.from({ length: 24 }, (_, j) => String(31 + j)).filter((n) => Number(n) % 5 !== 0)
        for (const next of [other, nth, other]) {
          const move = (n: string): string =>
            `update ${name(i)} set k = ${at(next, n)}, v = v || '~' where k = ${at(nth, n)};`
          await client.query(`begin; ${numbers.map(move).join(' ')} commit`)
        }
      }
      await untilEqual(pipeline, worker, 60, tables)
      const end = await worker.stop()
      assert.equal(end.code, 0, end.stderr)
    })
  }

  for (const [batchRows, lanes] of [
    [1, 2],
    [7, 3],
    [2000, 2],
  ] as const) {
    it(`H25: unique values that move between rows arrive in batches of ${batchRows}`, async () => {
      const pg = await postgres(18)
      const [source, target] = [await pg.database('unique_source'), await pg.database('unique_target')]
      await sql(source, uniqueDdl)
      const tables = await tablesOf(source)
      await pretendLarge(source, tables)
      await using pipeline = await scene({
        source,
        target,
        mode: 'hybrid',
        log: '{ type: embedded, partitions: 3 }',
        more: `apply: { lanes: ${lanes}, batchRows: ${batchRows} }`,
      })
      const worker = pipeline.run()
      await untilEqual(pipeline, worker, 60, tables)
      await using client = await connected(source)
      for (const statement of uniqueStatements) await client.query(statement)
      await untilEqual(pipeline, worker, 60, tables)
      const end = await worker.stop()
      assert.equal(end.code, 0, end.stderr)
    })
  }
})

const uniqueDdl = `
create table plain (id int primary key, u int unique);
create table deferred (id int primary key, u int unique deferrable initially deferred);
create table immediate (id int primary key, u int unique deferrable initially immediate);
create table partial (id int primary key, u int, active bool);
create unique index on partial (u) where active;
create table expression (id int primary key, u text);
create unique index on expression (lower(u));
create table nulls (id int primary key, u int unique nulls not distinct);
create table excluded (id int primary key, r int4range, exclude using gist (r with &&));
create table excluded_later (id int primary key, r int4range, exclude using gist (r with &&) deferrable initially deferred);
create table composite (a int, b text, c int, primary key (b, a), unique (b, c));
create table by_index (id int not null, u int not null unique, w int unique, v text);
alter table by_index replica identity using index by_index_u_key;
create table whole (id int primary key, u int unique, big text);
alter table whole alter big set storage external, replica identity full;
create table large (id int primary key, u int unique, big text);
alter table large alter big set storage external;
create table deferred_key (id int primary key deferrable initially deferred, v text);
alter table deferred_key replica identity full;
create table nullable (u int unique, v text);
alter table nullable replica identity full;
create table tree (id int primary key, parent int references tree on delete set null on update cascade, place int unique);
create table rotated (id int primary key, v text, big text) with (autovacuum_enabled = false);
alter table rotated alter big set storage external;
insert into plain select i, i from generate_series(1, 30) i;
insert into deferred select i, i from generate_series(1, 30) i;
insert into immediate select i, i from generate_series(1, 30) i;
insert into partial select i, i / 2, i % 2 = 0 from generate_series(1, 30) i;
insert into expression select i, 'U' || i from generate_series(1, 30) i;
insert into nulls select i, nullif(i, 7) from generate_series(1, 30) i;
insert into excluded select i, int4range(10 * i, 10 * i + 10) from generate_series(1, 30) i;
insert into excluded_later select i, int4range(10 * i, 10 * i + 10) from generate_series(1, 30) i;
insert into composite select i, 'b' || i % 3, i from generate_series(1, 30) i;
insert into by_index select i, i, i, 'v' from generate_series(1, 30) i;
insert into whole select i, i, repeat('w', 3000) from generate_series(1, 30) i;
insert into large select i, i, repeat('l', 3000) from generate_series(1, 30) i;
insert into deferred_key select i, 'v' || i from generate_series(1, 30) i;
insert into nullable select nullif(i, 7), 'v' || i from generate_series(1, 30) i;
insert into tree select i, nullif(i / 2, 0), i from generate_series(1, 30) i;
insert into rotated select i, 'v' || i, case when i % 10 = 0 then repeat('r', 3000) end from generate_series(60, 1, -1) i;
`
const swap = (table: string, key: string, cell: string, between: string): string =>
  `begin; update ${table} set ${cell} = ${between} where ${key} = 1; update ${table} set ${cell} = 1 where ${key} = 2; update ${table} set ${cell} = 2 where ${key} = 1; commit`
const uniqueStatements = [
  ...['plain', 'nulls', 'large', 'whole', 'by_index', 'tree', 'immediate', 'deferred'].flatMap((table) => {
    const cell = table === 'tree' ? 'place' : 'u'
    return [
      swap(table, 'id', cell, '99'),
      // In transactions of their own, which a batch may fold into one state.
      ...[`= 99 where id = 1`, `= 2 where id = 2`, `= 1 where id = 1`].map(
        (set) => `update ${table} set ${cell} ${set}`,
      ),
      `delete from ${table} where id = 5`,
      `update ${table} set ${cell} = 5 where id = 6`,
      `insert into ${table} (id, ${cell}${table === 'by_index' ? ', v' : ''}) values (5, 6${table === 'by_index' ? ', null' : ''})`,
      `begin; delete from ${table} where id in (8, 9); insert into ${table} (id, ${cell}) values (8, 9), (9, 8); commit`,
      `begin; update ${table} set id = 100 where id = 10; update ${table} set id = 10 where id = 11; update ${table} set id = 11 where id = 100; commit`,
      `begin; update ${table} set id = 101 where id = 12; update ${table} set ${cell} = 112 where id = 101; update ${table} set id = 12, ${cell} = 12 where id = 13; update ${table} set id = 13, ${cell} = 13 where id = 101; commit`,
    ]
  }),
  ...['deferred', 'excluded_later'].map(
    (table) =>
      `update ${table} set ${table === 'deferred' ? 'u = u + 1' : `r = int4range(lower(r) + 10, upper(r) + 10)`}`,
  ),
  `update deferred set u = 31 - u where u < 31`,
  `begin; set constraints all deferred; update immediate set u = 31 - u; update immediate set u = u + 3; commit`,
  `begin; update partial set active = false where id = 2; update partial set u = 1, active = true where id = 4; update partial set u = 2, active = true where id = 2; commit`,
  `update partial set active = false where id = 2; update partial set active = true where id = 5; update partial set u = 3 where id = 7`,
  `begin; update expression set u = 'x' where id = 1; update expression set u = 'u1' where id = 2; update expression set u = 'u2' where id = 1; commit`,
  `update expression set u = upper(u) where id < 10`,
  `update nulls set u = 7 where id = 7; update nulls set u = null where id = 3; update nulls set u = 3 where id = 4; update nulls set u = 4 where id = 3; update nulls set u = null where id = 9`,
  `begin; update excluded set r = 'empty' where id = 1; update excluded set r = '[10,20)' where id = 2; update excluded set r = '[20,30)' where id = 1; commit`,
  `begin; delete from excluded where id = 5; insert into excluded values (105, '[50,58)'); commit`,
  `begin; update composite set c = 99 where a = 3; update composite set c = 3 where a = 6; update composite set c = 6 where a = 3; commit`,
  `begin; update composite set a = 100 where a = 1; update composite set a = 1, c = 101 where a = 4; update composite set a = 4, c = 4 where a = 100; update composite set c = 1 where a = 1; commit`,
  `update composite set b = 'b' || (substr(b, 2)::int + 1) where b = 'b2'; update composite set b = 'b2' where b = 'b1' and a > 10`,
  `update by_index set u = u + 1000; update by_index set w = 31 - w where false`,
  `begin; update by_index set w = 99 where id = 1; update by_index set w = 1, u = 5000 where id = 2; update by_index set w = 2, u = 1001 where id = 1; commit`,
  `update deferred_key set id = id + 1`,
  `update deferred_key set id = 33 - id`,
  `begin; insert into deferred_key values (5, 'twice'); delete from deferred_key where id = 5 and v <> 'twice'; commit`,
  `begin; update nullable set u = null where u = 1; update nullable set u = 1 where u = 2; update nullable set u = 2 where v = 'v1'; commit; delete from nullable where u is null`,
  `update rotated set id = id + 1`,
  `update rotated set id = id + 1, v = v || '!'`,
  `update large set id = id + 1000 where id > 20; update large set u = u + 1000 where id > 1000; update large set big = 'b' || big where id > 1000; update large set id = id - 1000, u = u - 1000 where id > 1000`,
]

async function tablesOf(url: string): Promise<readonly string[]> {
  const rows = await sql<{ name: string }>(url, `select tablename as name from pg_tables where schemaname = 'public'`)
  return rows.map(({ name }) => name)
}
