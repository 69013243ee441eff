import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import type pg from 'pg'
import { connect, parse } from '../../../connectors/postgres/config.ts'
import { readCatalog, readLeftOut, tableSchema, type CatalogTable } from '../../../connectors/postgres/schema.ts'
import { bulkFormats } from '../../../connectors/postgres/types.ts'
import type { TableFilter } from '../../../src/connector.ts'
import { needs, postgres } from '../../support/servers.ts'

const signal = AbortSignal.timeout(60_000)

for (const version of [18, 14] as const) {
  describe(`the catalog of version ${version}`, needs(version === 18 ? 'pg' : 'pg14'), () => {
    let client: pg.Client
    before(async () => {
      client = await connect(
        parse({ url: await (await postgres(version)).database('schema') }),
        { name: 'test' },
        signal,
      )
    })
    after(() => client.end())

    async function table(name: string): Promise<CatalogTable> {
      const [found] = await readCatalog(client, (id) => id.name === name)
      assert.ok(found)
      return found
    }

    test('a session runs under pinned settings, whatever the role has', async () => {
      const { rows } = await client.query<{ name: string; setting: string }>(
        `select name, setting from pg_settings where name in ('TimeZone', 'DateStyle', 'extra_float_digits', 'row_security', 'search_path', 'bytea_output')`,
      )
      assert.deepEqual(Object.fromEntries(rows.map((row) => [row.name, row.setting])), {
        TimeZone: 'UTC',
        DateStyle: 'ISO, YMD',
        extra_float_digits: '3',
        row_security: 'off',
        search_path: 'pg_catalog',
        bytea_output: 'hex',
      })
    })

    test('columns: forms, casts without lengths, dropped and generated ones', async () => {
      await client.query(`
        create type public.mood as enum ('a'); create domain public.small as varchar(5); create domain public.smaller as public.small;
        create type public.pair as (a int);
        create table public.cols (id int generated always as identity primary key, gone int, c char(5), n numeric(5, 2) not null, b bit(3),
          v varchar(7)[], m public.mood, s public.smaller, p public.pair, g int generated always as (id * 2) stored);
        alter table public.cols drop column gone; alter table public.cols add column z int default 7`)
      const found = await table('cols')
      assert.deepEqual(
        found.columns.map(({ name, attnum, type, castType, form, binary }) => [
          name,
          attnum,
          type,
          castType,
          form,
          binary,
        ]),
        [
          ['id', 1, 'integer', 'integer', 'int32', true],
          ['c', 3, 'character(5)', 'bpchar', 'text', true],
          ['n', 4, 'numeric(5,2)', 'numeric', 'text', true],
          ['b', 5, 'bit(3)', '"bit"', 'text', true],
          ['v', 6, 'character varying(7)[]', 'character varying[]', 'text', true],
          ['m', 7, 'public.mood', 'public.mood', 'text', true],
          ['s', 8, 'public.smaller', 'character varying', 'text', true],
          ['p', 9, 'public.pair', 'public.pair', 'text', false],
          ['g', 10, 'integer', 'integer', 'int32', true],
          ['z', 11, 'integer', 'integer', 'int32', true],
        ],
      )
      assert.equal(found.columns.find((column) => column.name === 'z')?.missing, '{7}')
      assert.equal(found.columns.find((column) => column.name === 'id')?.identity, 'always')
      assert.deepEqual(bulkFormats(found), ['text'])
      const schema = tableSchema(found, 3)
      assert.deepEqual(
        schema.columns.map(({ name, nullable }) => [name, nullable]),
        [
          ['id', false],
          ['c', true],
          ['n', false],
          ['b', true],
          ['v', true],
          ['m', true],
          ['s', true],
          ['p', true],
          ['z', true],
        ],
      )
      assert.deepEqual([schema.version, schema.key, schema.before, schema.pinned], [3, [0], 'key', false])
    })

    test('binary only where names and types are the same', async () => {
      await client.query(
        'create table public.one (id int primary key, v varchar(5)); create table public.two (id int primary key, v varchar(5)); create table public.three (id int primary key, v varchar(6))',
      )
      const [one, two, three] = [
        bulkFormats(await table('one')),
        bulkFormats(await table('two')),
        bulkFormats(await table('three')),
      ]
      assert.equal(one.length, 2)
      assert.deepEqual(one, two)
      assert.notEqual(one[0], three[0])
    })

    const keys: readonly (readonly [string, string, readonly number[], 'key' | 'row', boolean])[] = [
      ['a plain key', 'a int, b int, primary key (b, a)', [1, 0], 'key', false],
      ['no key', 'a int', [], 'key', true],
      ['a deferrable key', 'a int primary key deferrable', [], 'key', true],
      ['a unique constraint beside', 'a int primary key, b int unique', [0], 'key', true],
      ['a unique index that the key implies', 'a int primary key, b int, unique (b, a)', [0], 'key', false],
      [
        'an exclusion constraint beside',
        `a int primary key, b int4range, exclude using gist (b with &&)`,
        [0],
        'key',
        true,
      ],
      [
        'an exclusion constraint over the key',
        `a inet primary key, exclude using gist (a inet_ops with &&)`,
        [0],
        'key',
        true,
      ],
      ['inet', `a inet primary key`, [0], 'key', false],
      ['numeric with a scale', 'a numeric(9, 2) primary key', [0], 'key', false],
      ['H6: numeric without a scale', 'a numeric primary key', [0], 'key', true],
      ['H6: float', 'a float8 primary key', [0], 'key', true],
      ['H6: interval', 'a interval primary key', [0], 'key', true],
      ['H6: an array', 'a int[] primary key', [0], 'key', true],
      ['H6: jsonb', 'a jsonb primary key', [0], 'key', true],
      ['H6: bpchar without a length', 'a bpchar primary key', [0], 'key', true],
      ['char with a length', 'a char(4) primary key', [0], 'key', false],
      ['text, uuid, timestamptz', 'a text, b uuid, c timestamptz, primary key (a, b, c)', [0, 1, 2], 'key', false],
      ['H6: a nondeterministic collation', `a text collate public.loose primary key`, [0], 'key', true],
      ['a domain over numeric', 'a public.amount primary key', [0], 'key', true],
    ]
    test('keys', async (t) => {
      await client.query(`create collation public.loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        create domain public.amount as numeric`)
      for (const [i, [name, columns, key, before, pinned]] of keys.entries()) {
        await t.test(name, async () => {
          await client.query(`create table public.key${i} (${columns})`)
          const schema = tableSchema(await table(`key${i}`), 1)
          assert.deepEqual([schema.key, schema.before, schema.pinned], [key, before, pinned])
        })
      }
    })

    test('replica identity decides what the log shows', async () => {
      await client.query(`create table public.full1 (a int primary key, b int); alter table public.full1 replica identity full;
        create table public.index1 (a int primary key, b int not null, c int); create unique index index1_b on public.index1 (b);
        alter table public.index1 replica identity using index index1_b`)
      assert.deepEqual(pick(await table('full1')), [[0], 'row', false])
      // Old keys are the index's columns; the primary key beside it is one more unique constraint.
      assert.deepEqual(pick(await table('index1')), [[1], 'key', true])
    })

    test('leaves of a partitioned table, and what is left out', async () => {
      await client.query(`
        create schema parts; create table parts.root (k int, d date, primary key (d, k)) partition by range (d);
        create table parts.y2020 partition of parts.root for values from ('2020-01-01') to ('2021-01-01') partition by list (k);
        create table parts.leaf partition of parts.y2020 for values in (1);
        create unlogged table parts.quick (a int); create table parts.bare (); create temporary table temp1 (a int); create view parts.v as select 1 as a;
        create schema crossfade; create table crossfade.own (a int)`)
      const names = async (filter: TableFilter): Promise<string[]> =>
        (await readCatalog(client, filter)).map((found) => found.table.name)
      assert.deepEqual(await names((id) => id.schema === 'parts'), ['leaf'])
      const within = (name: string): TableFilter => {
        return (_, ancestors = []) => ancestors.some((ancestor) => ancestor.name === name)
      }
      assert.deepEqual(await names(within('root')), ['leaf'])
      assert.deepEqual(await names(within('y2020')), ['leaf'])
      assert.deepEqual(await names((id) => /temp|crossfade/.test(id.schema)), [])
      assert.deepEqual(
        (await table('leaf')).ancestors.map((id) => id.name),
        ['root', 'y2020'],
      )
      assert.deepEqual(await readLeftOut(client, (id) => id.schema === 'parts'), [
        {
          table: { schema: 'parts', name: 'bare' },
          reason: 'a table without columns, or with generated ones alone: a row of it holds nothing',
          unlogged: false,
        },
        {
          table: { schema: 'parts', name: 'quick' },
          reason: 'an unlogged table: its changes are not in the write-ahead log',
          unlogged: true,
        },
      ])
    })
  })
}

function pick(table: CatalogTable): unknown[] {
  const { key, before, pinned } = tableSchema(table, 1)
  return [key, before, pinned]
}
