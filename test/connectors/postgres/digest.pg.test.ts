import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { describe, it } from 'node:test'
import { parse } from '../../../connectors/postgres/config.ts'
import { openReader } from '../../../connectors/postgres/reader.ts'
import { readCatalog, tableSchema } from '../../../connectors/postgres/schema.ts'
import type { Digest } from '../../../src/connector.ts'
import type { TableSchema } from '../../../src/model.ts'
import { bothWays, differingTypes, digestsOfTypes } from '../../support/digest-types.ts'
import { sql } from '../../support/postgres.ts'
import { needs, postgres } from '../../support/servers.ts'
import { connected } from '../../support/shop.ts'
import { exampleOf } from '../../src/verify/example.ts'
import { never } from './sink-server.ts'

const seed = Number(process.env['CROSSFADE_SEED'] ?? Date.now() % 100_000)

/** What is done to a copy of the table, by what it is called. All of it is to be seen. */
const corruptions: Readonly<Record<string, string>> = {
  'a row deleted': 'delete from $ where id = 7',
  'a row added': `insert into $ (id, t) values (21, 'new')`,
  'another key': 'update $ set id = 70 where id = 7',
  'one digit at the last place': 'update $ set n = n + 0.00000000000000000001 where id = 7',
  'the last bit of a float': `update $ set f = '0.10000000000000002' where id = 7`,
  'the sign of a float zero': `update $ set f = '-0' where id = 8`,
  'NULL for empty': 'update $ set t = null where id = 9',
  'empty for NULL': `update $ set t = '' where id = 10`,
  'an empty array for NULL': `update $ set a = '{}' where id = 10`,
  'empty bytes for NULL': `update $ set y = '' where id = 10`,
  'two rows exchange a value': `update $ set t = case id when 11 then 'row 12' else 'row 11' end where id in (11, 12)`,
  'two columns exchange a value': 'update $ set t = other, other = t where id = 11',
  'a character moves to the next column': `update $ set t = 'row 1', other = '1o' || substr(other, 2) where id = 11`,
  'a trailing blank': `update $ set t = t || ' ' where id = 11`,
  'a trailing blank of a limited text': `update $ set v = v || ' ' where id = 11`,
  'a leading blank of a padded text': `update $ set c = ' x' where id = 11`,
  '1.00 for 1.0': 'update $ set n = 1.00 where id = 8',
  'spacing in json': `update $ set j = '{"a":  1}' where id = 7`,
  'the scale of a number in jsonb': `update $ set b = '{"a": 1.10}' where id = 7`,
  'a microsecond': `update $ set at = at + interval '1 microsecond' where id = 7`,
  'another label': `update $ set m = 'sad' where id = 7`,
  'bounds of an array': `update $ set a = '[0:1]={1,2}' where id = 7`,
  'an element of NULL': `update $ set a = '{1,NULL}' where id = 7`,
  'case under a collation that ignores it': `update $ set i = 'word' where id = 7`,
  'accents composed another way': `update $ set t = U&'\\00e9' where id = 13`,
  'one bit of bytes': `update $ set y = '\\x0001' where id = 7`,
}
/** The same of a table without a key, where equal rows are to be counted. */
const keylessCorruptions: Readonly<Record<string, string>> = {
  'a row doubled': 'insert into $ select * from $ where id = 7',
  'a row tripled for one doubled': 'insert into $ select * from $ where id = 3',
  'a pair of equal rows gone': 'delete from $ where id = 3',
  'a pair of equal rows for another': 'update $ set t = (select t from $ where id = 4 limit 1), id = 4 where id = 3',
}

describe('the digest by the server and by the worker', needs('pg', 'pg14'), () => {
  it('is the same for values of every type, and on every version', async (t) => {
    t.diagnostic(`CROSSFADE_SEED=${seed}`)
    const [older, newer] = await Promise.all([digestsOfTypes(14, 100, seed), digestsOfTypes(18, 100, seed)])
    assert.ok(older.size > 120 && newer.size >= older.size, `${older.size} and ${newer.size} types`)
    assert.deepEqual(differingTypes(older, newer), [])
  })

  for (const version of [14, 18] as const) {
    it(`tells every corruption apart, on ${version}`, async () => {
      const url = await (await postgres(version)).database('corrupted')
      await sql(url, goodTable)
      await using reader = await openReader(parse({ url }), 'now', 'p', never)
      for (const [name, all] of Object.entries({ good: corruptions, keyless: keylessCorruptions })) {
        const schema = await schemaOf(url, name)
        const seen = new Map<string, string>()
        for (const [what, statement] of [['nothing', ''], ...Object.entries(all)]) {
          await sql(
            url,
            `truncate public.${name}; insert into public.${name} select * from public.pristine_${name}; ${statement?.replaceAll('$', `public.${name}`)}`,
          )
          const { server, worker } = await bothWays(reader, schema)
          assert.deepEqual(server, worker, what)
          const same = seen.get(textOf(server))
          assert.equal(same, undefined, `${what} looks like ${same}`)
          seen.set(textOf(server), what ?? '')
        }
      }
    })

    it(`does not depend on names, order of columns, encoding, settings or the page a row is on, on ${version}`, async () => {
      const server = await postgres(version)
      const url = await server.database('digest_here')
      const latin = new URL(url)
      latin.pathname = `${latin.pathname}_latin1`
      const name = latin.pathname.slice(1)
      await sql(server.adminUrl, `create database ${name} encoding 'LATIN1' locale 'C' template template0`)
      const rows = `select g as id, 'é' || g as t, g / 7.0 as n, timestamptz '2026-01-01 00:00:00Z' + g * interval '1 second' as at from generate_series(1, 500) g`
      await sql(url, `create table public.here as ${rows}; alter table public.here add primary key (id)`)
      await sql(
        latin.href,
        `create schema there; create table there.other (at timestamptz, n numeric, more text generated always as ('x') stored, id bigint primary key, t varchar(40));
         insert into there.other (id, t, n, at) ${rows} order by md5(g::text); update there.other set t = t where id % 3 = 0;
         alter database ${name} set timezone = 'Asia/Tokyo'; alter database ${name} set datestyle = 'German'; alter database ${name} set bytea_output = 'escape'`,
      )
      const here = await schemaOf(url, 'here')
      const there = { ...here, table: { schema: 'there', name: 'other' } }
      await using from = await openReader(parse({ url }), 'now', 'p', never)
      await using to = await openReader(parse({ url: latin.href }), 'now', 'p', never)
      const [left, right] = [await bothWays(from, here), await bothWays(to, there)]
      assert.deepEqual(left.server, right.server)
      assert.deepEqual(left.worker, right.worker)
      assert.deepEqual(left.server, left.worker)
      assert.equal(left.server.rows, 500)
      await to[Symbol.asyncDispose]()
      await sql(server.adminUrl, `drop database ${name} with (force)`)
    })

    it(`is what the example of the specification says, on ${version}`, async () => {
      const example = exampleOf(readFileSync(new URL('../../../docs/digest.md', import.meta.url), 'utf8'))
      const url = await (await postgres(version)).database('example')
      await sql(url, example.ddl)
      const schema = await schemaOf(url, 'item')
      await using reader = await openReader(parse({ url }), 'now', 'p', never)
      assert.deepEqual((await bothWays(reader, schema)).server, example.digest)
      await using client = await connected(url)
      const [found] = (await client.query(example.query)).rows
      assert.deepEqual(
        { rows: Number(found?.rows), sums: [BigInt(found?.first), BigInt(found?.second)] },
        example.digest,
      )
    })
  }
})

const goodTable = `
  create type public.mood as enum ('sad', 'happy');
  create collation public.any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
  create table public.good (id int primary key, t text, other text, c char(6), v varchar(20), n numeric, f float8, j json, b jsonb,
    at timestamptz, m public.mood, a int[], i text collate public.any_case, y bytea);
  insert into public.good select g, case g when 9 then '' when 10 then null when 13 then U&'e\\0301' else 'row ' || g end, case when g = 11 then 'o 11' else 'other ' || g end, 'x', 'v' || g,
      case g when 8 then 1.0 else g / 7.0 end, case g when 8 then 0 else 0.1 end, '{"a": 1}', '{"a": 1.1}', '2026-01-01 00:00:00.123456Z', 'happy',
      case when g <> 10 then '{1,2}'::int[] end, 'Word', case when g <> 10 then '\\x0000'::bytea end
    from generate_series(1, 20) g;
  create table public.pristine_good as table public.good;
  create table public.keyless (id int, t text);
  insert into public.keyless select g, 'row ' || g from generate_series(1, 8) g;
  insert into public.keyless select g, 'row ' || g from generate_series(3, 4) g;
  create table public.pristine_keyless as table public.keyless`

function textOf({ rows, sums }: Digest): string {
  return `${rows} ${sums.join(' ')}`
}

async function schemaOf(url: string, name: string): Promise<TableSchema> {
  await using client = await connected(url)
  const [table] = await readCatalog(client, (id) => id.name === name)
  if (!table) throw new Error(`no table ${name}`)
  return tableSchema(table, 1)
}
