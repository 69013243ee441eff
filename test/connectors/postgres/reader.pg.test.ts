import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import pg from 'pg'
import { connect, parse, type PostgresConfig } from '../../../connectors/postgres/config.ts'
import { openReader } from '../../../connectors/postgres/reader.ts'
import { readCatalog, tableSchema } from '../../../connectors/postgres/schema.ts'
import { Failure, type ErrorCode } from '../../../src/errors.ts'
import type { TableSchema } from '../../../src/model.ts'
import { readImage, rowsOf, Tag, type Rows } from '../../../src/rows.ts'
import { readDigest } from '../../../src/verify/digest.ts'
import { needs, postgres } from '../../support/servers.ts'

const signal = AbortSignal.timeout(120_000)

describe('reader', needs('pg'), () => {
  let url: string
  let config: PostgresConfig
  let admin: pg.Client

  before(async () => {
    url = await (await postgres()).database('reader')
    config = parse({ url })
    admin = await connect(config, { name: 'test' }, signal)
  })
  after(() => admin.end())

  async function schemaOf(name: string): Promise<TableSchema> {
    const [table] = await readCatalog(admin, (id) => id.name === name)
    assert.ok(table)
    return tableSchema(table, 1)
  }

  async function texts(batches: AsyncIterable<Rows>): Promise<(string | null)[][]> {
    const all: (string | null)[][] = []
    for await (const rows of batches) all.push(...textsOf(rows))
    return all
  }

  test('prints every type as the server itself does', async () => {
    await admin.query(`
      create type public.mood as enum ('sad', 'it''s ok');
      create domain public.short as varchar(5);
      create type public.pair as (a int, b char(3));
      create table public.kinds (id int primary key, b bool, c char(5), q "char", i inet, n cidr, x xml, t text, y bytea,
        f float8, g float4, m public.mood, d public.short, p public.pair, a char(3)[], num numeric, z timestamptz, l interval, mo money,
        dropped int, j jsonb, bits bit varying);
      alter table public.kinds drop column dropped;
      insert into public.kinds values (1, true, 'ab', 'x', '10.0.0.1', '10.0.0.0/8', '<a>1</a>', E'tab\\t''\\\\ \\u00e9\\U0001F600', '\\x00ff',
        '-0', 'NaN', 'it''s ok', 'short', '(1,a)', '{a,NULL}', 'NaN', '294276-01-01', '-1 mon +2 days', 12.5, '{"a": 1.10}', '101'),
        (2, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null),
        (3, false, '', '', '::1/64', null, null, '', '', 'infinity', 1e-45, 'sad', '', '(,)', '{}', 1e30, '-infinity', '0', -1, 'null', '')`)
    const schema = await schemaOf('kinds')
    await using reader = await openReader(config, 'now', 'test', signal)
    const [range] = await reader.ranges(schema, 1000, signal)
    assert.ok(range)
    const found = await texts(reader.rows(schema, range, signal))
    const raw = new pg.Client({
      connectionString: url,
      types: { getTypeParser: () => (text: string) => text } as never,
    })
    await raw.connect()
    await raw.query(`set timezone = 'UTC'; set extra_float_digits = 3; set lc_monetary = 'C'`)
    const { rows } = await raw.query<(string | null)[]>({
      text: 'select * from public.kinds order by id',
      rowMode: 'array',
    })
    await raw.end()
    assert.deepEqual(found, rows)
  })

  test('ranges cut a table into parts that together are the table, by one and by several columns', async () => {
    await admin.query(`
      create table public.big (id bigint primary key, v text);
      insert into public.big select g * 7 - 50000, 'v' || g from generate_series(1, 20000) g;
      create table public.pairs (a int, b text, primary key (b, a));
      insert into public.pairs select g % 50, 'k' || (g / 50) from generate_series(1, 5000) g;
      analyze public.big; analyze public.pairs`)
    await using reader = await openReader(config, 'now', 'test', signal)
    for (const [name, count] of [
      ['big', 20_000],
      ['pairs', 5_000],
    ] as const) {
      const schema = await schemaOf(name)
      const ranges = await reader.ranges(schema, 1000, signal)
      assert.equal(ranges.length, count / 1000)
      const seen = new Set<string>()
      let total = 0
      for (const range of ranges) {
        const rows = await texts(reader.rows(schema, range, signal))
        assert.ok(rows.length > 200 && rows.length < 3000, `${rows.length} rows in a range`)
        for (const row of rows) seen.add(row.join('|'))
        total += rows.length
      }
      assert.deepEqual([seen.size, total], [count, count])
    }
  })

  test('ranges are one where there is no key, no row, or an order that another server may not share', async () => {
    await admin.query(`
      create table public.keyless (a int); insert into public.keyless select generate_series(1, 5000);
      create table public.empty (a int primary key);
      create table public.localized (a text collate "en-x-icu" primary key);
      insert into public.localized select 'k' || g from generate_series(1, 5000) g;
      analyze public.keyless; analyze public.localized`)
    await using reader = await openReader(config, 'now', 'test', signal)
    for (const name of ['keyless', 'empty', 'localized']) {
      const ranges = await reader.ranges(await schemaOf(name), 100, signal)
      assert.deepEqual(
        ranges.map(({ from, to }) => [from, to]),
        [[undefined, undefined]],
      )
    }
  })

  test('frames are one whole COPY, whatever the pieces, and the session goes on', async () => {
    await admin.query(`create table public.wide (id int primary key, v text);
      insert into public.wide select g, repeat(chr(65 + g % 26), g * 13 % 200000) from generate_series(1, 400) g`)
    const schema = await schemaOf('wide')
    await using reader = await openReader(config, 'now', 'test', signal)
    const formats = reader.formats?.(schema) ?? []
    assert.match(formats[0] ?? '', /^binary:/)
    assert.equal(formats[1], 'text')
    for (const format of formats) {
      const pieces: Buffer[] = []
      for await (const piece of reader.frames?.(
        schema,
        { table: schema.table, from: '["2"]', estimatedRows: 0 },
        format,
        signal,
      ) ?? [])
        pieces.push(Buffer.from(piece))
      const bytes = Buffer.concat(pieces)
      let rows = 0
      let at = 0
      while (at < bytes.length) {
        assert.equal(bytes[at], 0x64)
        at += 1 + bytes.readUInt32BE(at + 1)
        rows++
      }
      assert.equal(at, bytes.length)
      // The trailer of the binary format is a frame too.
      assert.equal(rows, format === 'text' ? 399 : 400)
      const sum = format === 'text' ? bytes.filter((byte) => byte >= 65 && byte <= 90).length : undefined
      if (sum !== undefined) assert.ok(sum > 1_000_000)
    }
  })

  test('lookup keeps the order of the keys, and says which are gone', async () => {
    await admin.query(`create table public.looked (a int, b text, v float8, primary key (b, a));
      insert into public.looked values (1, 'x''y', 1.5), (2, 'z', null)`)
    const schema = await schemaOf('looked')
    await using reader = await openReader(config, 'now', 'test', signal)
    const number = (value: number): { tag: typeof Tag.native; bytes: Buffer } => {
      const bytes = Buffer.alloc(4)
      bytes.writeInt32BE(value)
      return { tag: Tag.native, bytes }
    }
    const text = (value: string): { tag: typeof Tag.text; bytes: Buffer } => ({
      tag: Tag.text,
      bytes: Buffer.from(value),
    })
    const keys = rowsOf([
      [text('z'), number(2)],
      [text('x'), number(1)],
      [text("x'y"), number(1)],
    ])
    const found = await reader.lookup(schema, keys, signal)
    assert.deepEqual(textsOf(found), [['2', 'z', null], [], ['1', "x'y", '1.5']])
    assert.equal(found.versions[1], '')
    assert.match(found.versions[0] ?? '', /^\d+ \(0,\d\)$/)
    assert.deepEqual(await reader.lookup(schema, keys, signal), found)
    await admin.query('update public.looked set v = v')
    const later = await reader.lookup(schema, keys, signal)
    assert.notEqual(later.versions[0], found.versions[0])
    assert.equal((await reader.lookup(schema, rowsOf([]), signal)).count, 0)
  })

  test('a lookup of more than is sent at once brings each key its row', async () => {
    await admin.query(`create table public.tall (id int primary key, a text);
      insert into public.tall select i, repeat(i::text || ' ', 600) from generate_series(1, 1000) i`)
    const schema = await schemaOf('tall')
    await using reader = await openReader(config, 'now', 'test', signal)
    const ids = Array.from({ length: 900 }, (_, i) => String(1 + ((i * 37) % 1100)))
    const found = await reader.lookup(
      schema,
      rowsOf(ids.map((id) => [{ tag: Tag.text, bytes: Buffer.from(id) }])),
      signal,
    )
    assert.deepEqual(
      textsOf(found),
      ids.map((id) => (Number(id) > 1000 ? [] : [id, `${id} `.repeat(600)])),
    )
  })

  test('random rows come out as they went in', async () => {
    await admin.query('create table public.random (id int primary key, t text, y bytea)')
    const schema = await schemaOf('random')
    await using reader = await openReader(config, 'now', 'test', signal)
    const cell = fc.option(fc.string({ unit: 'binary', maxLength: 300 }).map((text) => text.replaceAll('\0', '')))
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(cell, fc.option(fc.uint8Array({ maxLength: 300 }))), { maxLength: 40 }),
        async (rows) => {
          await admin.query('truncate public.random')
          for (const [i, [t, y]] of rows.entries())
            await admin.query('insert into public.random values ($1, $2, $3)', [
              i,
              t,
              y === null ? null : Buffer.from(y),
            ])
          const found = await texts(reader.rows(schema, { table: schema.table, estimatedRows: 0 }, signal))
          const expected = rows.map(([t, y], i) => [
            String(i),
            t,
            y === null ? null : `\\x${Buffer.from(y).toString('hex')}`,
          ])
          assert.deepEqual(found, expected)
        },
      ),
      { numRuns: 15 },
    )
  })

  test('H4: a table rewritten or truncated after the snapshot is noticed, not read as empty', async () => {
    await admin.query(`create table public.rewritten (id int primary key, v int); insert into public.rewritten select g, g from generate_series(1, 100) g;
      create table public.renamed (id int primary key, a int, b int); insert into public.renamed values (1, 2, 3)`)
    const schema = await schemaOf('rewritten')
    const renamed = await schemaOf('renamed')
    const holder = await connect(config, { name: 'holder' }, signal)
    await holder.query('begin isolation level repeatable read')
    const { rows } = await holder.query<{ id: string }>('select pg_export_snapshot() as id')
    await using reader = await openReader(config, rows[0]?.id ?? '', 'test', signal)
    const range = { table: schema.table, estimatedRows: 0 }
    assert.equal((await texts(reader.rows(schema, range, signal))).length, 100)
    await admin.query('alter table public.rewritten alter column v type bigint')
    await rejects('TABLE_REWRITTEN', texts(reader.rows(schema, range, signal)))
    await rejects('TABLE_REWRITTEN', readDigest(reader, schema, range, signal))
    await admin.query('truncate public.rewritten')
    await rejects('TABLE_REWRITTEN', texts(reader.rows(schema, range, signal)))
    await admin.query(
      'alter table public.renamed rename a to c; alter table public.renamed rename b to a; alter table public.renamed rename c to b',
    )
    await rejects('TABLE_CHANGED', texts(reader.rows(renamed, { table: renamed.table, estimatedRows: 0 }, signal)))
    await admin.query('drop table public.renamed')
    await rejects('TABLE_MISSING', texts(reader.rows(renamed, { table: renamed.table, estimatedRows: 0 }, signal)))
    await holder.query('rollback')
    await holder.end()
    await rejects('SNAPSHOT_LOST', texts(reader.rows(schema, range, signal)))
  })

  test('an error in the middle, an abandoned reading and an abort leave the reader usable', async () => {
    await admin.query(`create table public.broken (id int primary key, v text);
      insert into public.broken select g, repeat('x', 1000) from generate_series(1, 30000) g`)
    const schema = await schemaOf('broken')
    const range = { table: schema.table, estimatedRows: 0 }
    await using reader = await openReader(config, 'now', 'test', signal)
    for await (const rows of reader.rows(schema, range, signal)) {
      assert.ok(rows.count > 0)
      break
    }
    const abort = new AbortController()
    const reason = new Error('enough')
    const aborted = (async () => {
      for await (const piece of reader.frames?.(schema, range, 'text', abort.signal) ?? []) {
        assert.ok(piece.length > 0)
        abort.abort(reason)
      }
    })()
    await assert.rejects(aborted, reason)
    await assert.rejects(texts(reader.rows(schema, { ...range, from: '["no number"]' }, signal)), Failure)
    await admin.query(
      `select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'crossfade test reader' and datname = current_database()`,
    )
    assert.equal((await texts(reader.rows(schema, range, signal))).length, 30_000)
  })

  test('an aborted digest ends at the server too, and leaves the reader usable', async () => {
    await admin.query(`create table public.slow (id int primary key, v text);
      insert into public.slow select g, repeat('x', 50000) from generate_series(1, 5000) g`)
    const schema = await schemaOf('slow')
    const [id, v] = schema.columns
    assert.ok(id && v)
    // 5 MB a row: half a minute at the least.
    const wide = { ...schema, columns: [id, ...Array.from({ length: 100 }, () => v)] }
    const range = { table: schema.table, estimatedRows: 0 }
    await using reader = await openReader(config, 'now', 'test', signal)
    const abort = new AbortController()
    const reason = new Error('enough')
    const digest = readDigest(reader, wide, range, abort.signal)
    const working = async (): Promise<number> => {
      const { rows } = await admin.query<{ count: number }>(
        `select count(*)::int as count from pg_stat_activity
          where datname = current_database() and state = 'active' and query like '%sha256%' and pid <> pg_backend_pid()`,
      )
      return rows[0]?.count ?? 0
    }
    const until = async (count: number): Promise<void> => {
      const deadline = Date.now() + 15_000
      while ((await working()) !== count) {
        assert.ok(Date.now() < deadline, `not ${count} within 15 s`)
        await sleep(20)
      }
    }
    await until(1)
    abort.abort(reason)
    await assert.rejects(digest, reason)
    await until(0)
    assert.equal((await readDigest(reader, schema, { ...range, to: '["10"]' }, signal)).rows, 9)
  })

  async function rejects(code: ErrorCode, reading: Promise<unknown>): Promise<void> {
    await assert.rejects(reading, (error) => error instanceof Failure && error.code === code)
  }
})

function textsOf(rows: Rows): (string | null)[][] {
  const all: (string | null)[][] = []
  for (let i = 0; i < rows.count; i++) {
    const cells = readImage(rows.bytes, rows.starts[i] ?? 0, rows.starts[i + 1] ?? 0)
    all.push(cells.map((cell) => (cell ? Buffer.from(cell.bytes).toString('utf8') : null)))
  }
  return all
}
