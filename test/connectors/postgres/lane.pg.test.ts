import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import pg from 'pg'
import { parse } from '../../../connectors/postgres/config.ts'
import { openReader } from '../../../connectors/postgres/reader.ts'
import type { TableReader } from '../../../src/connector.ts'
import { Failure, type ErrorCode } from '../../../src/errors.ts'
import type { Barrier, Chunk, Form, Position, TableId, TableSchema, TopicPartition } from '../../../src/model.ts'
import { rowsOf } from '../../../src/rows.ts'
import { advance, batch, group, inOrder } from '../../conformance/sink.ts'
import { cellsOf, textCellsOf, type TestChange, type Value } from '../../support/images.ts'
import { needs } from '../../support/servers.ts'
import { at, bench, never } from './sink-server.ts'

const code = (wanted: ErrorCode) => (error: unknown) => error instanceof Failure && error.code === wanted

function framesOf(reader: TableReader, schema: TableSchema, chunk: Chunk, format: string): AsyncIterable<Uint8Array> {
  const frames = reader.frames?.(schema, chunk, format, never)
  assert.ok(frames)
  return frames
}

function truncateOf(table: TableId, position: number, partitions: readonly TopicPartition[]): Barrier {
  return {
    kind: 'barrier',
    mark: { position: String(position).padStart(16, '0') as Position, seq: 0 },
    committedAt: 0,
    epoch: 1,
    partitions,
    effect: { kind: 'truncate', tables: [table], cascade: false, restartCounters: false },
  }
}

describe('a lane on PostgreSQL', needs('pg'), () => {
  const types = `
    create type public.mood as enum ('sad', 'so so');
    create domain public.short as varchar(5) check (value <> 'bad');
    create type public.pair as (a int, b text);
    create table public.kinds (
      id int generated always as identity primary key, yes boolean, small smallint, middle integer, large bigint,
      single real, double double precision, exact numeric(12,2), any_numeric numeric, fixed char(4), short varchar(5),
      plain text, bytes bytea, day date, at timestamptz, at_local timestamp(3), clock timetz, span interval,
      uid uuid, js json, jb jsonb, ints int[], texts text[], mood public.mood, moods public.mood[], dom public.short,
      comp public.pair, box box, net inet, bits bit(4), varb bit varying, r int4range, x xml, v tsvector,
      always int generated always as identity, "Quo""ted $1" text, twice int generated always as (middle * 2) stored)`
  const wide: (string | null)[] = [
    '7', 't', '-3', '42', '9007199254740993', '1.5', '0.1', '123.40', '1.000', 'ab', 'abcde', "it's\n\\x {\",\"}",
    '\\x00ff', '2024-02-29', '2024-02-29 12:00:00.123456+00', '2024-02-29 12:00:00.123', '12:00:00+02', '1 mon 2 days 03:04:05',
    '6f1d6bb2-e048-485d-af3e-3b82dfc853c7', '{"a": 1,  "a": 2}', '{"b": [1, null]}', '{1,NULL,3}', '{a,"b c",NULL,"NULL",""}',
    'so so', '{sad,"so so"}', 'abc', '(1,"x y")', '(2,2),(1,1)', '10.0.0.0/8', '1010', '101', '[1,10)', '<a>1</a>', "'a' 'b':1A",
    '99', 'odd',
  ] // prettier-ignore
  const printed = `select array[id::text, yes::text, large::text, double::text, exact::text, any_numeric::text, fixed::text, plain, bytes::text,
    at::text, js::text, jb::text, texts::text, mood::text, moods::text, dom::text, comp::text, x::text, always::text, "Quo""ted $1", twice::text] as row from public.kinds order by id`

  for (const form of ['native', 'text'] as const) {
    it(`writes every type from ${form} cells, null too`, async () => {
      await using target = await bench(types)
      const schema = await target.schema('kinds')
      const cells = form === 'native' ? cellsOf : textCellsOf
      const nulls: Value[] = wide.map((_, c) => (c === 0 ? '8' : c === wide.length - 2 ? '98' : null))
      const rows = rowsOf([cells(schema, wide), cells(schema, nulls)])
      const step = advance(target.from)
      const columns = schema.columns.map((_, c) => c)
      const upsert = { schema, kind: 'upsert', mayMiss: false, columns, rows } as const
      assert.deepEqual(await target.lane.apply(batch([upsert]), [step], never), [])
      const found = await target.sql<{ row: string[] }>(printed)
      assert.deepEqual(found[0]?.row, [
        '7', 'true', '9007199254740993', '0.1', '123.40', '1.000', 'ab', "it's\n\\x {\",\"}", '\\x00ff', '2024-02-29 12:00:00.123456+00',
        '{"a": 1,  "a": 2}', '{"b": [1, null]}', '{a,"b c",NULL,"NULL",""}', 'so so', '{sad,"so so"}', 'abc', '(1,"x y")', '<a>1</a>',
        '99', 'odd', '84',
      ]) // prettier-ignore
      assert.deepEqual(found[1]?.row.slice(1, 8), [null, null, null, null, null, null, null])
      // Twice the same is an update, also of what is always generated.
      assert.deepEqual(await target.lane.apply(batch([upsert]), [advance(step.to)], never), [])
      assert.equal((await target.sql('select from public.kinds')).length, 2)
    })
  }

  it('mixes native and text cells of one column, and floats into numeric', async () => {
    await using target = await bench('create table public.t (id bigint primary key, n numeric, f real, b text)')
    const schema = await target.schema('t')
    const forms: readonly Form[] = ['int64', 'float64', 'float32', 'bool']
    const columns = schema.columns.map((column, c) => ({ ...column, form: forms[c] ?? 'text' }))
    const asSource: TableSchema = { ...schema, columns }
    const native = cellsOf(asSource, ['1', '0.1', '0.1', 't'])
    const text = textCellsOf(asSource, ['2', '1e3', 'NaN', 'f'])
    const upsert = {
      schema: asSource,
      kind: 'upsert',
      mayMiss: false,
      columns: [0, 1, 2, 3],
      rows: rowsOf([native, text, native.with(0, cellsOf(asSource, ['3'])[0])]),
    } as const
    await target.lane.apply(batch([upsert]), [advance(target.from)], never)
    assert.deepEqual(await target.sql('select id::int, n::text, f::text, b from public.t order by id'), [
      { id: 1, n: '0.1', f: '0.1', b: 't' },
      { id: 2, n: '1000', f: 'NaN', b: 'f' },
      { id: 3, n: '0.1', f: '0.1', b: 't' },
    ])
  })

  it('refuses a value too long instead of cutting it, and names the change without its values', async () => {
    await using target = await bench('create table public.t (id int primary key, v varchar(3), u int unique)')
    const schema = await target.schema('t')
    const rows: Value[][] = [
      ['1', 'abc', '1'],
      ['2', 'secret', '2'],
      ['3', 'x', '3'],
    ]
    const changes = rows.map((next): TestChange => ({ schema, op: 'insert', next }))
    const groups = [group(schema, 'upsert', rows)]
    let failure: unknown
    await assert.rejects(target.lane.apply(batch(groups, changes), [advance(target.from)], never), (error) => {
      failure = error
      return true
    })
    assert.ok(failure instanceof Failure)
    assert.equal(failure.code, 'ROW_REJECTED')
    assert.match(failure.message, /public\.t: change 0000000000000009 4: value too long/)
    assert.doesNotMatch(failure.message, /secret/)
    assert.deepEqual(await target.sql('select * from public.t'), [])
    // The lane goes on.
    assert.deepEqual(
      await target.lane.apply(batch([group(schema, 'upsert', [['1', 'abc', '1']])]), [advance(target.from)], never),
      [],
    )
  })

  it('applies change by change what a folded batch cannot: unique values that move between rows', async () => {
    await using target = await bench(`create table public.t (id int primary key, u int unique);
      create table public.d (id int primary key, u int unique deferrable initially immediate)`)
    const [t, d] = [await target.schema('t'), await target.schema('d')]
    const first = advance(target.from)
    const start: Value[][] = [
      ['1', '1'],
      ['2', '2'],
    ]
    await target.lane.apply(batch([group(t, 'upsert', start), group(d, 'upsert', start)]), [first], never)
    const changes: TestChange[] = [
      { schema: t, op: 'update', next: ['1', '3'] },
      { schema: t, op: 'update', next: ['2', '1'] },
      { schema: t, op: 'update', next: ['1', '2'] },
      { schema: d, op: 'update', next: ['1', '2'] },
      { schema: d, op: 'update', next: ['2', '1'] },
    ]
    const end: Value[][] = [
      ['1', '2'],
      ['2', '1'],
    ]
    const second = advance(first.to)
    assert.deepEqual(
      await target.lane.apply(batch([group(t, 'upsert', end), group(d, 'upsert', end)], changes), [second], never),
      [],
    )
    for (const table of ['t', 'd'])
      assert.deepEqual(await target.sql(`select id, u from public.${table} order by id`), [
        { id: 1, u: 2 },
        { id: 2, u: 1 },
      ])
    const [row] = await target.sink.checkpoints(never)
    assert.equal(row?.offset, 2)
  })

  it('replays nothing once it has lost its claim', async () => {
    await using target = await bench('create table public.t (id int primary key, u int unique)')
    const schema = await target.schema('t')
    const rows: Value[][] = [
      ['1', '1'],
      ['2', '1'],
    ]
    const changes = rows.map((next): TestChange => ({ schema, op: 'insert', next }))
    const lane = await target.another()
    const taken = {
      ...batch([group(schema, 'upsert', rows)], changes),
      // Between the batch and its replay.
      ordered: () => inOrder(changes.slice(0, 1)).ordered(),
    }
    await lane.claim([at], 2, never)
    assert.deepEqual(await target.lane.apply(taken, [advance(target.from)], never), [at])
    assert.deepEqual(await target.sql('select * from public.t'), [])
  })

  it('ends a stuck former session that holds the partition', async () => {
    await using target = await bench('create table public.t (id int primary key)')
    const stuck = new pg.Client({ connectionString: target.url })
    stuck.on('error', () => {})
    await stuck.connect()
    const ended = new Promise((resolve) => stuck.once('end', resolve))
    await stuck.query(`update crossfade.checkpoint set backend_pid = pg_backend_pid(),
      backend_start = (select backend_start from pg_stat_activity where pid = pg_backend_pid())`)
    await stuck.query('begin')
    await stuck.query('update crossfade.checkpoint set next_offset = 99')
    const lane = await target.another()
    const [checkpoint] = await lane.claim([at], 2, never)
    assert.equal(checkpoint?.offset, 0)
    await ended
  })

  it('breaks off at an abort: what waits for a lock is never written', async () => {
    await using target = await bench('create table public.t (id int primary key)')
    const schema = await target.schema('t')
    const blocker = new pg.Client({ connectionString: target.url })
    await blocker.connect()
    await blocker.query('begin; lock table public.t')
    const stop = new AbortController()
    const work = target.lane.apply(batch([group(schema, 'upsert', [['1']])]), [advance(target.from)], stop.signal)
    const waits = `select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`
    while ((await target.sql(waits)).length === 0);
    stop.abort(new Error('enough'))
    await assert.rejects(work, /enough/)
    const deadline = Date.now() + 10_000
    while ((await target.sql(waits)).length > 0) assert.ok(Date.now() < deadline, 'the server still waits')
    await blocker.query('commit')
    await blocker.end()
    assert.deepEqual(await target.sql('select * from public.t'), [])
    const fresh = await target.another()
    const [from] = await fresh.claim([at], 1, never)
    assert.ok(from)
    assert.deepEqual(await fresh.apply(batch([group(schema, 'upsert', [['1']])]), [advance(from)], never), [])
  })

  it('writes a large batch whose first statement fails without mixing it with the next', async () => {
    await using target = await bench('create table public.t (id int primary key, v text)')
    const schema = await target.schema('t')
    const rows: Value[][] = Array.from({ length: 3000 }, (_, i) => [String(i), 'v'.repeat(2000)])
    const big = batch([group(schema, 'upsert', rows)])
    const wrong = { ...advance(target.from), from: 5 }
    for (let i = 0; i < 3; i++) {
      assert.deepEqual(await target.lane.apply(big, [wrong], never), [at])
    }
    assert.deepEqual(await target.lane.apply(big, [advance(target.from)], never), [])
    assert.deepEqual(await target.sql('select count(*)::int as n, min(length(v)) as l from public.t'), [
      { n: 3000, l: 2000 },
    ])
  })

  it('names its writes in the write-ahead log, each lane by a name of its own', async () => {
    const pipeline = `o${process.pid}`
    await using target = await bench(
      'create table public.t (id int primary key); create publication p for table public.t',
      { pipeline },
    )
    const slot = `crossfade_test_${process.pid}`
    await target.sql(`select pg_create_logical_replication_slot($1, 'pgoutput')`, [slot])
    const schema = await target.schema('t')
    await target.lane.apply(batch([group(schema, 'upsert', [['1']])]), [advance(target.from)], never)
    const other = await target.another()
    const two = rowsOf([cellsOf(schema, ['2'])])
    await other.repair(at, schema, async () => ({ keys: two, rows: two }), never)
    await target.sql('insert into public.t values (3)')
    const read = `select data from pg_logical_slot_get_binary_changes($1, null, null, 'proto_version', '1', 'publication_names', 'p')`
    const messages = await target.sql<{ data: Buffer }>(read, [slot])
    await target.sql('select pg_drop_replication_slot($1)', [slot])
    const kinds = messages.map(({ data }) => String.fromCharCode(data[0] ?? 0)).join('')
    assert.match(kinds, /^BOR?ICBOR?ICBR?IC$/)
    const names = messages.flatMap(({ data }) => (data[0] === 0x4f ? [data.toString('utf8', 9, data.length - 1)] : []))
    assert.deepEqual(names, [`crossfade:${pipeline}:1`, `crossfade:${pipeline}:2`])
  })

  it('leaves triggers and foreign keys alone', async () => {
    await using target = await bench(`create table public.p (id int primary key);
      create table public.c (id int primary key, p int references public.p);
      create function public.f() returns trigger language plpgsql as 'begin raise exception ''fired''; end';
      create trigger t before insert on public.c for each row execute function public.f()`)
    const schema = await target.schema('c')
    const next: Value[] = ['1', '7']
    const work = batch([group(schema, 'upsert', [next])], [{ schema, op: 'insert', next }])
    assert.deepEqual(await target.lane.apply(work, [advance(target.from)], never), [])
    assert.deepEqual(await target.sql('select * from public.c'), [{ id: 1, p: 7 }])
  })

  it('works without a superuser’s rights, and defers what can be deferred', async () => {
    const role = `crossfade_plain_${process.pid}`
    const ddl = `create role ${role} login;
      do $$ begin execute format('grant create on database %I to ${role}', current_database()); end $$;
      create table public.p (id int primary key);
      create table public.c (id int primary key, u int unique deferrable, p int references public.p deferrable);
      grant all on all tables in schema public to ${role}`
    await using target = await bench(ddl, { user: role })
    try {
      const [c, p] = [await target.schema('c'), await target.schema('p')]
      const changes: TestChange[] = [
        { schema: c, op: 'insert', next: ['1', '1', '7'] },
        { schema: c, op: 'insert', next: ['2', '2', '7'] },
        { schema: c, op: 'update', next: ['1', '2', '7'] },
        { schema: c, op: 'update', next: ['2', '1', '7'] },
        { schema: p, op: 'insert', next: ['7'] },
      ]
      const end: Value[][] = [
        ['1', '2', '7'],
        ['2', '1', '7'],
      ]
      const groups = [group(c, 'upsert', end), group(p, 'upsert', [['7']])]
      const step = advance(target.from)
      assert.deepEqual(await target.lane.apply(batch(groups, changes), [step], never), [])
      assert.deepEqual(await target.sql('select id, u, p from public.c order by id'), [
        { id: 1, u: 2, p: 7 },
        { id: 2, u: 1, p: 7 },
      ])
      const orphan: Value[] = ['3', '3', '8']
      const wrong = batch([group(c, 'upsert', [orphan])], [{ schema: c, op: 'insert', next: orphan }])
      await assert.rejects(target.lane.apply(wrong, [advance(step.to)], never), /ROW_REJECTED.*at the commit/)
    } finally {
      await target.lane[Symbol.asyncDispose]()
      await target.sink[Symbol.asyncDispose]()
      await target.sql(`drop owned by ${role} cascade`)
      await target.sql(`drop role ${role}`)
    }
  })

  for (const format of ['binary', 'text'] as const) {
    it(`loads ${format} frames as a reader sends them`, async () => {
      const ddl = `create table public.t (id bigint primary key, v text, n numeric, d int default 1)`
      await using source = await bench(
        `${ddl}; insert into public.t select i, repeat('x', i % 300), i / 3.0 from generate_series(1, 20000) i`,
      )
      await using target = await bench(ddl)
      const schema = await source.schema('t')
      await using reader = await openReader(parse({ url: source.url }), 'now', 'p', never)
      const format_ = reader
        .formats?.(schema)
        .find((name) => name.startsWith(format) && target.lane.formats?.(schema).includes(name))
      assert.ok(format_ !== undefined)
      const copy = { table: schema.table, partitions: [at], snapshot: '0000000000000001' as Position, live: false }
      await target.sink.setCopies([copy], 1, never)
      const chunk: Chunk = {
        table: schema.table,
        id: '1',
        snapshot: copy.snapshot,
        replace: true,
        estimatedRows: 1,
        from: '["5"]',
        to: '["19001"]',
      }
      const frames = framesOf(reader, schema, chunk, format_)
      assert.equal(await target.lane.load(schema, chunk, { kind: 'frames', format: format_, frames }, 1, never), 18996)
      const sum = `select md5(string_agg(t::text, ',' order by id)) as sum from public.t where id >= 5 and id < 19001`
      assert.deepEqual(await target.sql(sum), await source.sql(sum))
      async function* broken(): AsyncIterable<Uint8Array> {
        for await (const piece of framesOf(reader, schema, chunk, format_ ?? '')) {
          yield piece.subarray(0, piece.length - 1)
          throw new Error('the source is gone')
        }
      }
      const data = { kind: 'frames', format: format_, frames: broken() } as const
      await assert.rejects(target.lane.load(schema, { ...chunk, id: '2' }, data, 1, never), /the source is gone/)
      await assert.rejects(target.lane.claim([at], 9, never), code('SERVER_UNREACHABLE'))
      assert.deepEqual(await target.sql(sum), await source.sql(sum))
    })
  }

  it('sets sequences to the next value, and leaves out one that is not there', async () => {
    await using target = await bench(
      'create schema "Odd"; create sequence "Odd"."s 1"; create sequence public.down increment -1',
    )
    const counters = [
      { name: '"Odd"."s 1"', value: 9007199254740993n },
      { name: 'public.down', value: -5n },
      { name: 'public.nowhere', value: 1n },
    ]
    for (let i = 0; i < 2; i++) await target.sink.advance?.(counters, never)
    const next = `select nextval('"Odd"."s 1"')::text as a, nextval('public.down')::text as b`
    assert.deepEqual(await target.sql(next), [{ a: '9007199254740993', b: '-5' }])
  })

  it('ends a copy session that is stuck on the chunk', async () => {
    await using target = await bench('create table public.t (id int primary key)')
    const schema = await target.schema('t')
    const copy = { table: schema.table, partitions: [at], snapshot: '0000000000000001' as Position, live: false }
    await target.sink.setCopies([copy], 1, never)
    const chunk: Chunk = { table: schema.table, id: '1', snapshot: copy.snapshot, replace: true, estimatedRows: 1 }
    let release = (): void => {}
    const held = new Promise<void>((resolve) => (release = resolve))
    let began = (): void => {}
    const begun = new Promise<void>((resolve) => (began = resolve))
    async function* slow() {
      yield rowsOf([cellsOf(schema, ['1'])])
      began()
      await held
    }
    const stuck = target.lane.load(schema, chunk, { kind: 'rows', batches: slow() }, 1, never)
    stuck.catch(() => {})
    await begun
    async function* quick() {
      yield rowsOf([cellsOf(schema, ['1']), cellsOf(schema, ['2'])])
    }
    const lane = await target.another()
    assert.equal(await lane.load(schema, chunk, { kind: 'rows', batches: quick() }, 2, never), 2)
    release()
    await assert.rejects(stuck, code('SERVER_UNREACHABLE'))
    assert.deepEqual(await target.sql('select id from public.t order by id'), [{ id: 1 }, { id: 2 }])
  })

  it('names the tables of a truncate that another table’s foreign key forbids', async () => {
    await using target = await bench(
      'create table public.of_us (id int primary key); create table public.not_of_us (id int references public.of_us)',
    )
    const table = { schema: 'public', name: 'of_us' }
    await target.sink.setCopies([{ table, partitions: [at], snapshot: '' as Position, live: true }], 1, never)
    const truncate = truncateOf(table, 10, [at])
    await assert.rejects(
      target.lane.arrive(truncate, advance(target.from), never),
      (error: unknown) =>
        error instanceof Failure && error.code === 'TARGET_SHAPE' && error.facts.object === 'public.of_us',
    )
    await target.sql('drop table public.not_of_us')
    assert.equal(await target.lane.arrive(truncate, advance(target.from), never), 'done')
  })

  it('H17: forgets a barrier once every partition has passed it, not before', async () => {
    await using target = await bench('create table public.of_us (id int primary key)')
    const two = { ...at, partition: 1 }
    const table = { schema: 'public', name: 'of_us' }
    await target.sink.setCopies([{ table, partitions: [at, two], snapshot: '' as Position, live: true }], 1, never)
    const kept = async (): Promise<unknown> => {
      const [row] = await target.sql(
        `select (select count(*)::int from crossfade.barrier) as barriers, (select count(*)::int from crossfade.arrival) as arrivals`,
      )
      return row
    }
    const [first, second] = [target.lane, await target.another()]
    let [one] = await first.claim([at], 1, never)
    let [other] = await second.claim([two], 1, never)
    assert.ok(one && other)
    const both = truncateOf(table, 1, [at, two])
    const onward = advance(one, 1, both.mark.position)
    assert.equal(await first.arrive(both, onward, never), 'waiting')
    const past = advance(other, 1, both.mark.position)
    assert.equal(await second.arrive(both, past, never), 'done')
    other = past.to
    for (let n = 2; n < 6; n++) {
      const alone = truncateOf(table, n, [two])
      const step = advance(other, 1, alone.mark.position)
      assert.equal(await second.arrive(alone, step, never), 'done')
      assert.equal(await second.arrive(alone, step, never), 'done')
      other = step.to
      assert.deepEqual(await kept(), { barriers: 2, arrivals: 3 }, 'the first partition has not passed')
    }
    assert.equal(await first.arrive(both, onward, never), 'done')
    one = onward.to
    const last = truncateOf(table, 9, [at])
    assert.equal(await first.arrive(last, advance(one, 1, last.mark.position), never), 'done')
    assert.deepEqual(await kept(), { barriers: 1, arrivals: 1 }, 'only the one that is being passed')
  })

  it('writes to a table of any name', async () => {
    await using target = await bench(
      'create table public.excluded (id int primary key, t int, s int, c0 int, x int, touched int)',
    )
    const schema = await target.schema('excluded')
    const rows = [['1', '2', '3', '4', '5', '6']]
    assert.deepEqual(await target.lane.apply(batch([group(schema, 'upsert', rows)]), [advance(target.from)], never), [])
    assert.deepEqual(await target.sql('select c0, x, touched from public.excluded'), [{ c0: 4, x: 5, touched: 6 }])
  })
})
