import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import { sql } from '../support/postgres.ts'
import { scene, untilEqual } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { connected, pretendLarge } from '../support/shop.ts'

const seed = Number(process.env['CROSSFADE_SEED'] ?? Date.now() % 100_000)
const rounds = 4
const transactionsARound = 60

const ddl = `
create table keyed (id int primary key, v text, big text) with (autovacuum_enabled = false);
create table composite (v text, a int, big text, b text, primary key (b, a)) with (autovacuum_enabled = false);
create table pinned (id numeric primary key, v text, big text);
create table beside (id int primary key, v text, big text, u int unique);
create table later (id int primary key deferrable initially deferred, v text, big text);
alter table later replica identity full;
create table keyless (id int, v text, big text);
alter table keyless replica identity full;
insert into keyed select i, 'first', repeat('x', 3000) from generate_series(1, 40) i;
insert into composite select 'first', i % 5, repeat('x', 3000), 'b' || i from generate_series(1, 40) i;
insert into pinned select i, 'first', repeat('x', 3000) from generate_series(1, 40) i;
insert into beside select i, 'first', repeat('x', 3000), i from generate_series(1, 40) i;
insert into later select i, 'first', repeat('x', 3000) from generate_series(1, 40) i;
insert into keyless select i % 7, 'first', repeat('x', 3000) from generate_series(1, 40) i;
`
const tables = ['keyed', 'composite', 'pinned', 'beside', 'later', 'keyless'] as const
type Table = (typeof tables)[number]

/** The large value is stored apart, and not sent again where it does not change. */
const external = tables.map((table) => `alter table ${table} alter big set storage external`).join('; ')

/** The nth key of a table; equal ones of `pinned` print differently. */
function key(table: Table, n: number, m: number): Readonly<Record<string, string>> {
  if (table === 'composite') return { b: `'b${n}'`, a: String(n % 5) }
  return {
    id: table === 'pinned' ? `${n}${['', '.0', '.00'][m % 3]}` : table === 'keyless' ? String(n % 7) : String(n),
  }
}
const where = (table: Table, n: number): string => {
  const cells = Object.entries(key(table, n, 0)).map(([name, value]) => `${name} = ${value}`)
  // One of several equal rows.
  return table === 'keyless' ? `ctid = (select min(ctid) from keyless where ${cells.join()})` : cells.join(' and ')
}
const set = (cells: Readonly<Record<string, string>>): string =>
  Object.entries(cells)
    .map(([name, value]) => `${name} = ${value}`)
    .join(', ')

type Step = {
  readonly table: Table
  readonly kind: (typeof kinds)[number]
  readonly n: number
  readonly m: number
  readonly v: number
}
const kinds = [
  'insert',
  'put',
  'touch',
  'enlarge',
  'move',
  'move and touch',
  'delete',
  'swap',
  'shift',
  'all',
  'exchange',
  'truncate',
  'truncate all',
] as const
const weights: Partial<Record<(typeof kinds)[number], number>> = {
  insert: 6,
  put: 4,
  touch: 6,
  move: 6,
  'move and touch': 4,
  swap: 4,
  exchange: 4,
  delete: 4,
}

function statement({ table, kind, n, m, v }: Step): string {
  const large = v % 3 === 0 ? `repeat('${v % 10}', 3000)` : v % 3 === 1 ? 'null' : `'small'`
  const to = key(table, m, v)
  const between = key(table, 900 + (v % 5), 0)
  switch (kind) {
    case 'insert':
    case 'put': {
      const cells = { ...to, v: `'${kind} ${v}'`, big: large, ...(table === 'beside' ? { u: String(m) } : {}) }
      const insert = `insert into ${table} (${Object.keys(cells).join(', ')}) values (${Object.values(cells).join(', ')})`
      return kind === 'insert' ? insert : `delete from ${table} where ${where(table, m)}; ${insert}`
    }
    case 'touch':
      return `update ${table} set v = 't${v}' where ${where(table, n)}`
    case 'enlarge':
      return `update ${table} set big = ${large} where ${where(table, n)}`
    case 'move':
      return `update ${table} set ${set(to)} where ${where(table, n)}`
    case 'move and touch':
      return `update ${table} set ${set(to)}, v = 'm${v}', big = ${large} where ${where(table, n)}`
    case 'delete':
      return `delete from ${table} where ${where(table, n)}`
    case 'swap':
      return `update ${table} set ${set(between)} where ${where(table, n)}; update ${table} set ${set(key(table, n, v))} where ${where(table, m)}; update ${table} set ${set(to)} where ${where(table, 900 + (v % 5))}`
    case 'shift':
      return table === 'later'
        ? 'update later set id = id + 1'
        : `update ${table} set v = v || '.' where ${where(table, n)}`
    case 'all':
      return `update ${table} set v = 'all ${v}' where ${table === 'composite' ? 'a' : 'id'} % 4 = ${v % 4}`
    case 'exchange':
      return `update beside set u = 1000 + ${v} where id = ${n}; update beside set u = ${n} where u = ${m}; update beside set u = ${m} where u = 1000 + ${v}`
    case 'truncate':
      return `truncate ${table}; insert into ${table} select * from kept_${table}`
    case 'truncate all':
      return `truncate keyed, keyless, beside; insert into keyed select * from kept_keyed`
    default:
      return kind satisfies never
  }
}

const number = fc.integer({ min: 1, max: 45 })
const step = fc.record<Step>({
  table: fc.constantFrom(...tables),
  kind: fc.oneof(...kinds.map((kind) => ({ arbitrary: fc.constant(kind), weight: weights[kind] ?? 1 }))),
  n: number,
  m: number,
  v: fc.nat(999),
})
const transaction = fc.record({
  steps: fc.array(step, { minLength: 1, maxLength: 6 }),
  undone: fc.array(step, { maxLength: 2 }),
  ends: fc.oneof({ arbitrary: fc.constant('commit'), weight: 9 }, { arbitrary: fc.constant('rollback'), weight: 1 }),
  fault: fc.oneof(
    { arbitrary: fc.constant('none'), weight: 50 },
    { arbitrary: fc.constant('lane'), weight: 3 },
    { arbitrary: fc.constant('worker'), weight: 1 },
  ),
})

describe('a random history', needs('pg'), () => {
  it('H5, H6, H17, H25: over tables of every kind of key ends equal, whatever dies on the way', async (t) => {
    t.diagnostic(`CROSSFADE_SEED=${seed}`)
    const pg = await postgres(18)
    const [source, target] = [await pg.database('history_source'), await pg.database('history_target')]
    await sql(source, ddl)
    await sql(source, external)
    await pretendLarge(source, tables)
    await sql(
      source,
      `create schema aside; ${tables.map((table) => `create table aside.kept_${table} as table ${table} limit 5`).join('; ')}`,
    )
    await using pipeline = await scene({
      source,
      target,
      mode: 'hybrid',
      log: '{ type: embedded, partitions: 3 }',
      more: `apply: { lanes: 3, batchRows: ${1 + (seed % 7)} }\nsnapshot: { chunkRows: 70000 }`,
    })
    let worker = pipeline.run()
    await using client = await connected(source)
    await client.query('set search_path = public, aside')
    let done: string[] = []
    const took = { kept: 0, refused: 0 }
    try {
      for (let round = 0; round < rounds; round++) {
        done = []
        for (const { steps, undone, ends, fault } of fc.sample(transaction, {
          seed: seed + round,
          numRuns: transactionsARound,
        })) {
          await client.query('begin')
          for (const [i, each] of [...steps, ...undone].entries()) {
            // Many are refused, as keys are few.
            await client.query('savepoint s')
            const text = statement(each)
            const kept = await client.query(text).then(
              () => i < steps.length,
              () => false,
            )
            await client.query(kept ? 'release s' : 'rollback to s')
            took[kept ? 'kept' : 'refused']++
            done.push(`${kept ? '' : '-- '}${text}`)
          }
          await client.query(ends).catch((error: unknown) => done.push(String(error)))
          done.push(`${ends};`)
          if (fault === 'none') continue
          t.diagnostic(`round ${round}: ${fault} killed`)
          if (fault === 'lane')
            await sql(
              target,
              `select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name like 'crossfade%lane%' limit 1`,
            )
          else {
            await worker.kill9()
            worker = pipeline.run()
          }
        }
        await untilEqual(pipeline, worker, 60, tables)
      }
    } catch (error) {
      t.diagnostic(done.join('\n'))
      throw error
    }
    t.diagnostic(`${took.kept} statements took effect, ${took.refused} were refused or undone`)
    assert.ok(took.kept > 100)
    assert.equal((await worker.stop()).code, 0)
  })
})
