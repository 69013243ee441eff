import assert from 'node:assert/strict'
import { suite, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ChangeStream, Source, SourceEvent } from '../../../src/connector.ts'
import { type Position, type TableChange, heartbeatPrefix } from '../../../src/model.ts'
import { Op, readImage } from '../../../src/rows.ts'
import { flatten, type Flat } from '../../support/flatten.ts'
import { pgSourceBed, type PgSourceBed } from '../../support/pg-source.ts'
import { needs, postgres } from '../../support/servers.ts'

const never = new AbortController().signal
const ddl = `create table a (id int primary key, name varchar(10), n int, m numeric(6,2), f real);
             insert into a values (1, 'one', 1, 1.50, 0.1), (2, null, null, null, null)`

type Row = Map<string, string | null>
/** A target in a few lines: what it holds must be what the source holds in the end. Absent cells stay. */
class Replica {
  rows = new Map<string, Row>()
  seen: string[] = []
  changes: TableChange[] = []

  take(event: SourceEvent): void {
    for (const flat of flatten(event)) if (flat.kind !== 'message') this.seen.push(JSON.stringify(flat))
    if (event.kind === 'effect' && event.effect.kind === 'schema')
      event.effect.changes.forEach((each) => this.#alter(each))
    if (event.kind !== 'changes') return
    for (let i = 0; i < event.count; i++) {
      const columns = event.schemas[event.table[i] ?? 0]?.columns ?? []
      const cells = (image: number): (string | null | undefined)[] => {
        const { bytes, starts } = event.images
        const read = readImage(bytes, starts[image] ?? 0, starts[image + 1] ?? 0)
        return read.map((cell) => (cell ? Buffer.from(cell.bytes).toString() : cell))
      }
      const old = cells(2 * i)[0]
      const fresh = cells(2 * i + 1)
      if (event.op[i] === Op.delete) this.rows.delete(old ?? '')
      else {
        const key = fresh[0] ?? ''
        const row = this.rows.get(old ?? key) ?? new Map<string, string | null>()
        if (old !== undefined && old !== key) this.rows.delete(old ?? '')
        columns.forEach(({ name }, c) => {
          const cell = fresh[c]
          if (cell !== undefined) row.set(name, cell)
        })
        this.rows.set(key, row)
      }
    }
  }

  #alter(change: TableChange): void {
    this.changes.push(change)
    for (const row of this.rows.values()) {
      if (change.kind === 'drop') row.delete(change.column)
      if (change.kind === 'add') row.set(change.column, change.value ?? null)
      if (change.kind === 'rename') {
        row.set(change.to, row.get(change.column) ?? null)
        row.delete(change.column)
      }
      // As a server would: the same decimal digits, but for a float.
      if (change.kind === 'retype' && change.type === 'double precision') {
        const value = row.get(change.column)
        if (value) row.set(change.column, String(Math.fround(Number(value))))
      }
    }
  }
}

async function content(bed: PgSourceBed): Promise<readonly unknown[]> {
  const { rows } = await bed.client.query<{ name: string }>(
    `select attname as name from pg_attribute where attrelid = 'a'::regclass and attnum > 0 and not attisdropped`,
  )
  const { rows: found } = await bed.client.query(
    `select ${rows.map(({ name }) => `${name}::text as ${name}`).join(', ')} from a order by a.id`,
  )
  return found
}
function held(replica: Replica, computed: readonly string[]): readonly unknown[] {
  return [...replica.rows]
    .toSorted(([a], [b]) => Number(a) - Number(b))
    .map(([, row]) => Object.fromEntries([...row].filter(([name]) => !computed.includes(name))))
}

/** Reads until a heartbeat brings nothing new any more, and `enough`. */
async function follow(source: Source, stream: ChangeStream, replica: Replica, enough: () => boolean): Promise<void> {
  const iterator = stream[Symbol.asyncIterator]()
  const deadline = performance.now() + 30_000
  for (let beat = 0; ; beat++) {
    await source.emit(heartbeatPrefix, Buffer.from(`beat ${beat}`), never)
    for (let last = false; !last;) {
      const { value } = await iterator.next()
      replica.take(value)
      last = value.kind === 'message' && Buffer.from(value.content).toString() === `beat ${beat}`
    }
    if (enough()) return
    assert.ok(performance.now() < deadline, `it never came; seen: ${replica.seen.join('\n')}`)
    await sleep(100)
  }
}

type Case = {
  readonly name: string
  /** One statement each; between them rows are written. */
  readonly steps: readonly string[]
  readonly kinds: readonly string[]
  /** Columns that the stream does not carry. */
  readonly computed?: readonly string[]
}
const cases: readonly Case[] = [
  { name: 'a nullable column', steps: ['alter table a add b text'], kinds: ['add b'] },
  {
    name: 'a column with a constant default, and not null',
    steps: [`alter table a add b text not null default E'it''s "q" {\\\\}'`],
    kinds: ['add b', 'nullable b'],
  },
  {
    name: 'a default that was changed since, which is not what old rows hold',
    steps: [
      'alter table a add b int default 5',
      'alter table a alter b set default 7',
      'alter table a alter b drop default',
    ],
    kinds: ['add b'],
  },
  {
    name: 'an array, an hour, a document',
    steps: [
      `alter table a add b text[] default '{a,"b,c",NULL}', add c timestamptz default now(), add d jsonb default '{"x": [1]}'`,
    ],
    kinds: ['add b', 'add c', 'add d'],
  },
  { name: 'a dropped column', steps: ['alter table a drop column n'], kinds: ['drop n'] },
  { name: 'a renamed column', steps: ['alter table a rename n to number'], kinds: ['rename n'] },
  {
    name: 'wider types',
    steps: [
      'alter table a alter n type bigint, alter f type float8',
      'alter table a alter name type varchar(20)',
      'alter table a alter name type text',
      'alter table a alter m type numeric(9,2)',
    ],
    kinds: ['retype n', 'retype f', 'retype name', 'retype name', 'retype m'],
  },
  {
    name: 'null and not null',
    steps: ['alter table a add b int default 1 not null', 'alter table a alter b drop not null'],
    kinds: [],
  },
  {
    name: 'a computed column',
    steps: ['alter table a add g int generated always as (id * 2) stored'],
    kinds: ['compute g'],
    computed: ['g'],
  },
  {
    name: 'several, one after the other',
    steps: [
      'alter table a add b int',
      'alter table a add c text default $$c$$',
      'alter table a drop column n',
      'alter table a rename b to bb',
      'alter table a alter name type text',
    ],
    kinds: ['add b', 'add c', 'drop n', 'rename b', 'retype name'],
  },
  {
    name: 'a column that takes another’s name, as tools change a type',
    steps: [
      'alter table a add n2 bigint',
      'update a set n2 = n',
      'begin; alter table a drop column n; alter table a rename n2 to n; commit',
    ],
    kinds: ['add n2', 'drop n', 'rename n2'],
  },
  {
    name: 'a column dropped and another added, of the same type and of another',
    steps: [
      'alter table a drop column f, add g real default 2',
      'alter table a drop column g, add g text default $$x$$',
    ],
    kinds: ['drop f', 'add g', 'drop g', 'add g'],
  },
  {
    name: 'names passed on, and the first one given to a new column',
    steps: [
      `begin; alter table a rename m to former; alter table a rename n to m; alter table a add n int default 4; commit`,
    ],
    kinds: ['rename m', 'rename n', 'add n'],
  },
  {
    name: 'inside one transaction, with one that is rolled back',
    steps: [
      `begin; insert into a values (101, 'x'); alter table a add b int; insert into a (id, b) values (102, 2); alter table a rename b to c;
       insert into a (id, c) values (103, 3); savepoint s; alter table a drop column c; insert into a (id) values (104); rollback to s;
       insert into a (id, c) values (105, 5); commit`,
    ],
    kinds: ['add b', 'rename b'],
  },
]

async function write(bed: PgSourceBed, at: number): Promise<void> {
  await bed.client.query(`insert into a (id) values (${10 * at + 11}), (${10 * at + 12}), (${10 * at + 13})`)
  await bed.client.query(
    `update a set m = ${at}.25 where id = ${10 * at + 12}; delete from a where id = ${10 * at + 11}`,
  )
  await bed.client.query(`update a set id = ${10 * at + 15} where id = ${10 * at + 13}`)
}
const kindsOf = (replica: Replica): readonly string[] => replica.changes.map(({ kind, column }) => `${kind} ${column}`)

for (const version of [18, 14] as const) {
  suite(
    `a table's history on PostgreSQL ${version}`,
    { ...needs(version === 18 ? 'pg' : 'pg14'), concurrency: 3 },
    () => {
      // The older server is asked for the longest ones.
      for (const { name, steps, kinds, computed = [] } of version === 18 ? cases : cases.slice(-4)) {
        for (const when of ['while it streams', 'while nobody reads'] as const) {
          test(`H26: ${name}, ${when}: rows and changes come in an order that gives the source's rows, each time the same`, async () => {
            const pg = await postgres(version)
            await using bed = await pgSourceBed(await pg.database('history'), ddl)
            let after: Position
            {
              await using source = await bed.open()
              after = await bed.retain(source)
            }
            const start = (await content(bed)) as readonly Record<string, string | null>[]
            const replicaAtStart = (): Replica => {
              const replica = new Replica()
              for (const row of start) replica.rows.set(row['id'] ?? '', new Map(Object.entries(row)))
              return replica
            }
            const live = replicaAtStart()
            const work = async (): Promise<void> => {
              await write(bed, 0)
              for (const [i, step] of steps.entries()) {
                await bed.client.query(step)
                await write(bed, i + 1)
              }
            }
            const complete = (replica: Replica) => (): boolean => kinds.every((kind) => kindsOf(replica).includes(kind))
            {
              await using source = await bed.open()
              if (when === 'while nobody reads') await work()
              await using stream = await source.changes(after, never)
              if (when === 'while it streams') {
                await follow(source, stream, live, () => true)
                await work()
              }
              await follow(source, stream, live, complete(live))
            }
            const expected = ((await content(bed)) as readonly Record<string, string | null>[]).map((row) =>
              Object.fromEntries(Object.entries(row).filter(([column]) => !computed.includes(column))),
            )
            assert.deepEqual(sorted(held(live, computed)), sorted(expected))
            // Again, from the beginning: the history is recorded, and the catalog is ahead.
            const again = replicaAtStart()
            {
              await using source = await bed.open()
              await using stream = await source.changes(after, never)
              await follow(source, stream, again, () => again.seen.length >= live.seen.length)
            }
            assert.deepEqual(again.seen.slice(0, live.seen.length), live.seen)
            // And from places in between.
            const places = [...new Set(live.seen.map((text) => (JSON.parse(text) as Flat).position))]
            for (const place of places.filter((_, i) => i % 5 === 2)) {
              const rest = live.seen.filter((text) => (JSON.parse(text) as Flat).position > place)
              const from = new Replica()
              await using source = await bed.open()
              await using stream = await source.changes(place as Position, never)
              await follow(source, stream, from, () => from.seen.length >= rest.length)
              assert.deepEqual(from.seen.slice(0, rest.length), rest)
            }
          })
        }
      }
      for (const within of [false, true])
        for (const live of [true, false])
          test(`H26: NULL right behind a dropped NOT NULL, ${within ? 'in one transaction' : 'by itself'}, ${live ? 'while it streams' : 'while nobody reads'}: the column takes NULL first`, async () => {
            const pg = await postgres(version)
            await using bed = await pgSourceBed(
              await pg.database('history'),
              'create table a (id int primary key, n int not null, m text not null); create table b (id int primary key)',
            )
            await using source = await bed.open()
            const after = await bed.retain(source)
            const work = async (): Promise<void> => {
              await bed.client.query('insert into b values (1); insert into a values (1, 1, 1)')
              const [begin, commit] = within ? ['begin', 'commit'] : ['', '']
              await bed.client.query(`${begin}; alter table a alter n drop not null`)
              await bed.client.query(`insert into b values (2); insert into a values (2, null, 2); ${commit}`)
              await bed.client.query(`insert into a values (3, null, 3)`)
            }
            if (!live) await work()
            const read = async (stream: ChangeStream, former: readonly Flat[] = []): Promise<readonly Flat[]> => {
              const all = [...former]
              for await (const event of stream) {
                all.push(...flatten(event))
                if (all.some((flat) => flat.kind === 'change' && flat.table === 'public.a' && flat.new[0] === '3'))
                  break
              }
              return all.filter(({ kind }) => kind !== 'message')
            }
            await using stream = await source.changes(after, never)
            if (live) {
              await follow(source, stream, new Replica(), () => true)
              await work()
            }
            const first = await read(stream)
            const effects = first.filter(({ kind }) => kind === 'effect')
            assert.equal(effects.length, 1, JSON.stringify(first))
            const [effect] = effects
            assert.ok(effect?.kind === 'effect' && effect.effect.kind === 'schema')
            assert.deepEqual(effect.effect.changes, [{ kind: 'nullable', column: 'n', nullable: true }])
            const row = first.findIndex((flat) => flat.kind === 'change' && flat.new[1] === null)
            assert.ok(first.indexOf(effect) < row, JSON.stringify(first))
            await stream[Symbol.asyncDispose]()
            await using again = await source.changes(after, never)
            assert.deepEqual(await read(again), first)
          })

      test(`H24, H26: rows behind a change of a table that was left out since keep their numbers, left out once and again`, async () => {
        const pg = await postgres(version)
        await using bed = await pgSourceBed(
          await pg.database('history'),
          `create table a (id int primary key); create table b (id int primary key); create table c (id int primary key)`,
        )
        await using source = await bed.open()
        const after = await bed.retain(source)
        const marks = async (): Promise<readonly string[]> => {
          const all: Flat[] = []
          await using stream = await source.changes(after, never)
          await source.emit(heartbeatPrefix, Buffer.from('end'), never)
          for await (const event of stream) {
            all.push(...flatten(event))
            if (event.kind === 'message' && Buffer.from(event.content).toString() === 'end') break
          }
          return all.flatMap((flat) =>
            flat.kind === 'change' && flat.table === 'public.a' ? [`${flat.position} ${flat.seq} ${flat.new[0]}`] : [],
          )
        }
        await bed.client.query(
          `begin; insert into a values (1); alter table b add x int; insert into b values (1, 1); alter table c add y int;
           alter table b drop column x; truncate b, c; insert into a values (2); insert into b values (2); insert into a values (3); commit`,
        )
        const first = await marks()
        assert.equal(first.length, 3)
        const all = await bed.tables(source)
        const a = all.filter(({ table }) => table.name === 'a')
        for (const tables of [a, all, a, all]) {
          await source.retain(tables, never)
          assert.deepEqual(await marks(), first)
        }
        await bed.client.query('alter table c add z int; insert into c values (1, 1, 1); insert into a values (4)')
        const second = await marks()
        for (const tables of [a, all, a]) {
          await source.retain(await bed.tables(source).then((now) => (tables === a ? a : now)), never)
          assert.deepEqual(await marks(), second)
        }
      })
    },
  )
}

function sorted(rows: readonly unknown[]): readonly unknown[] {
  return rows.map((row) => Object.fromEntries(Object.entries(row as object).toSorted(([a], [b]) => (a < b ? -1 : 1))))
}
