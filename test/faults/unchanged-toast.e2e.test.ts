import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { sql } from '../support/postgres.ts'
import { scene, untilEqual } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { connected } from '../support/shop.ts'

/** Values so large that they lie beside their row, and are not sent again by an update that leaves them. One table for each way to store them. */
const storages = ['external', 'extended', 'main', 'plain'] as const
/** A plain value has to fit into its page. */
const sizes = { external: 1 << 20, plain: 2000 }
/** md5 sums in a row do not compress; of 32 bytes each. */
const value = (seed: string, size: number): string =>
  `(select string_agg(md5(${seed} || '/' || g), '') from generate_series(1, ${Math.ceil(size / 32)}) g)`
const tables = [...storages, 'two_keys', 'pinned', 'uniquely'] as const

const ddl = [
  ...storages.map(
    (storage) => `create table ${storage} (id int primary key, n int, big text, other bytea, list text[]);
      alter table ${storage} alter big set storage ${storage}, alter other set storage ${storage}, alter list set storage ${storage};`,
  ),
  // Keys of two columns, keys equal but not in bytes (applied in order), and a unique value beside the key.
  `create table two_keys (id int, k text, n int, big text, other bytea, list text[], primary key (k, id));
   create table pinned (id numeric primary key, n int, big text, other bytea, list text[]);
   create table uniquely (id int primary key, n int unique, big text, other bytea, list text[]);`,
].join('\n')

function fill(table: string, first: number, last: number): string {
  const size = sizes[table as keyof typeof sizes] ?? 20_000
  const key = table === 'two_keys' ? `, k` : ''
  const keyed = table === 'two_keys' ? `, 'k' || i` : ''
  return `insert into ${table} (id${key}, n, big, other, list)
    select i${keyed}, i, ${value(`'${table}' || i`, size)}, decode(${value(`'o' || i`, size / 2)}, 'hex'), array[${value(`'l' || i`, 2500)}, null]
      from generate_series(${first}, ${last}) i`
}

/** Each is one transaction; `t` stands for the table. */
const small = [
  `update t set n = n + 100`,
  `update t set n = n + 100 where id = 1; update t set n = n + 100 where id = 1; update t set n = n + 100 where id = 1`,
  // First left as it is, then touched, and the other way round; in one batch.
  `update t set n = n + 1000 where id = 2; update t set big = 'touched', n = n + 1000 where id = 2`,
  `update t set big = repeat('again', 500) where id = 3; update t set n = n + 1000 where id = 3; update t set n = n + 1000 where id = 3`,
  // One of several touched.
  `update t set other = '\\x00' where id = 4`,
  `update t set list = array['x'] where id = 4; update t set n = n + 1000 where id = 4`,
  `update t set other = null, list = '{}' where id = 5`,
  // Keys move, with what is not sent: alone, there and back, onto the place of a row that goes, and touched on the way.
  `update t set id = 100 where id = 6`,
  `update t set id = 101 where id = 7; update t set id = 7 where id = 101`,
  `delete from t where id = 8; update t set id = 8 where id = 9`,
  `update t set id = 102 where id = 10; update t set n = n + 1000 where id = 102; update t set big = 'moved' where id = 102; update t set id = 103 where id = 102`,
  `update t set id = 104, other = '\\x01' where id = 11; update t set n = n + 1000 where id = 104`,
  // Inserted, left, deleted and inserted again; rolled back.
  `delete from t where id = 12; INSERT 12; update t set n = n + 1000 where id = 12`,
  `begin; savepoint s; update t set big = 'never', n = 1 where id = 13; rollback to s; update t set n = n + 1000 where id = 13; commit`,
]
const afterTruncate = [
  `truncate t; INSERT 1; update t set n = n + 100`,
  `update t set n = n + 100; update t set id = id + 50 where id = 1; update t set n = n + 100`,
]

describe('values that are not sent again', needs('pg', 'pg15'), () => {
  const cases = [
    [18, 1000],
    [18, 2],
    [15, 3],
  ] as const
  for (const [from, batchRows] of cases)
    it(`H5: stay, in batches of ${batchRows}, from version ${from}, across a kill, moves of keys and a truncate`, async () => {
      const source = await (await postgres(from)).database('toast_source')
      const target = await (await postgres(18)).database('toast_target')
      await sql(source, ddl)
      for (const table of tables) await sql(source, fill(table, 1, 13))
      const more = `apply: { lanes: 2, batchRows: ${batchRows} }`
      const log = '{ type: embedded, partitions: 3 }'
      await using pipeline = await scene({ source, target, mode: 'hybrid', log, more })
      let worker = pipeline.run()
      await untilEqual(pipeline, worker, 120, tables)
      await using client = await connected(source)
      const run = async (statements: readonly string[]): Promise<void> => {
        for (const statement of statements)
          for (const table of tables) {
            const text = statement
              .replaceAll(/\bt\b/g, table)
              .replaceAll(/INSERT (\d+)/g, (_, id: string) => fill(table, Number(id), Number(id)))
            await client.query(text)
          }
      }
      const half = small.length / 2
      await run(small.slice(0, half))
      await worker.kill9()
      await run(small.slice(half))
      worker = pipeline.run()
      await untilEqual(pipeline, worker, 120, tables)
      await run(afterTruncate)
      await untilEqual(pipeline, worker, 120, tables)
      const end = await worker.stop()
      assert.equal(end.code, 0, end.stderr)
    })
})
