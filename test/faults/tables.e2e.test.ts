import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { sql } from '../support/postgres.ts'
import { configure, scene, type Scene } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { connected } from '../support/shop.ts'
import { until, type Worker } from '../support/worker.ts'

const seed = Number(process.env['CROSSFADE_SEED'] ?? Date.now() % 100_000)
const rounds = 16
/** Two are large enough to be killed while they are copied, one is empty, one has no key. */
const tables = ['big', 'large', 'nothing', 'loose', 'small', 'tiny'] as const
const rowsOf: Readonly<Record<(typeof tables)[number], number>> = {
  big: 60_000,
  large: 30_000,
  nothing: 0,
  loose: 500,
  small: 300,
  tiny: 5,
}

describe('H9: tables come and go on a pipeline that is killed', needs('pg'), () => {
  it('H9: added several at once, left out and taken in again under writes, all end equal', async (t) => {
    t.diagnostic(`CROSSFADE_SEED=${seed}`)
    const random = generator(seed)
    const shared = await postgres(18)
    const [source, target] = [await shared.database('come_source'), await shared.database('come_target')]
    for (const table of tables)
      await sql(
        source,
        `create table ${table} (id int ${table === 'loose' ? '' : 'primary key'}, n int not null default 0, text text);
         ${table === 'loose' ? 'alter table loose replica identity full;' : ''}
         insert into ${table} select i, 0, repeat('x', 100) from generate_series(1, ${rowsOf[table]}) i`,
      )
    await using pipeline = await scene({ source, target, mode: 'hybrid' })
    const configured = async (wanted: readonly string[]): Promise<void> =>
      await configure(pipeline, {
        include: wanted.map((table) => `public.${table}`),
        more: 'snapshot: { parallel: 2, chunkRows: 2000 }',
      })
    await using writers = startWriters(source, [random, random, random])
    let wanted: readonly string[] = ['big', 'small']
    for (let round = 1; round <= rounds; round++) {
      await configured(wanted)
      await emptyWhatIsLeft(pipeline, wanted)
      const worker = pipeline.run()
      const life = 600 + random() * (round % 3 === 0 ? 9000 : 3500)
      const early = await Promise.race([worker.ended, sleep(life)])
      let how = 'killed'
      if (early !== undefined) how = demanded(worker)
      else if (random() < 0.4) {
        how = 'stopped'
        const end = await worker.stop()
        // Of a signal that comes before it can hear one it dies.
        assert.ok(end.code === 0 || end.stdout + end.stderr === '', end.stdout + end.stderr)
      } else await worker.kill9()
      t.diagnostic(`round ${round}: ${wanted.join(', ')}; ${how} after ${Math.round(life)} ms`)
      const some = tables.filter(() => random() < 0.6)
      wanted = some.length > 0 ? some : ['tiny']
    }
    await configured(tables)
    let worker: Worker | undefined
    const differences = async (): Promise<readonly string[]> => await pipeline.differences(tables)
    for (let attempt = 1; worker === undefined; attempt++) {
      await emptyWhatIsLeft(pipeline, tables)
      const started = pipeline.run()
      if (await runs(started)) worker = started
      else assert.ok(attempt < 3, demanded(started))
    }
    const commits = await writers.stop()
    t.diagnostic(`${commits} commits`)
    await until(differences, { seconds: 90, worker })
    const published = await sql<{ tablename: string }>(
      source,
      'select tablename from pg_publication_tables where pubname = $1',
      [`crossfade_${pipeline.name}`],
    )
    assert.deepEqual(published.map(({ tablename }) => tablename).toSorted(), tables.toSorted())
    const end = await worker.stop()
    assert.equal(end.code, 0, end.stderr)
  })
})

/** What the operator does before a table is taken in again: those that the pipeline has let go are emptied at the target. */
async function emptyWhatIsLeft({ target }: Scene, wanted: readonly string[]): Promise<void> {
  const own = await sql<{ name: string }>(target, 'select table_name as name from crossfade.copy').catch(() => [])
  const theirs = wanted.filter((table) => !own.some(({ name }) => name === table))
  for (const table of theirs) await sql(target, `truncate ${table}`).catch(() => {}) // not there yet
}

/** Whether it got past its checks: a start on a loaded machine takes what it takes. */
async function runs(worker: Worker): Promise<boolean> {
  for (;;) {
    if (await Promise.race([worker.ended.then(() => true), sleep(50, false)])) return false
    if (/ (copying|streaming|catching up) /.test(worker.printed())) return true
  }
}

/** A worker may end by itself only to demand that an operator empties a table that was being let go when the last one died. */
function demanded(worker: Worker): string {
  const text = worker.output()
  assert.match(text, /CHECK_FAILED/, text)
  assert.match(text, /TRUNCATE/, text)
  return 'asked for empty tables'
}

/** Each writes transactions over several tables, some of them open for seconds. */
function startWriters(url: string, randoms: readonly (() => number)[]): AsyncDisposable & { stop(): Promise<number> } {
  let stopped = false
  let commits = 0
  const write = async (client: pg.Client, random: () => number): Promise<void> => {
    await client.query('begin')
    const changes = 1 + Math.floor(random() * 4)
    for (let n = 0; n < changes; n++) {
      const table = tables[Math.floor(random() * tables.length)] ?? 'tiny'
      const id = 1 + Math.floor(random() * 40_000)
      const kind = random()
      if (kind < 0.45)
        await client.query(
          `insert into ${table} values ($1, 0, 'new') ${table === 'loose' ? '' : 'on conflict (id) do update set n = excluded.n + 1'}`,
          [id],
        )
      else if (kind < 0.75) await client.query(`update ${table} set n = n + 1 where id between $1 and $1 + 20`, [id])
      else if (kind < 0.97) await client.query(`delete from ${table} where id between $1 and $1 + 3`, [id])
      else if (kind < 0.985) await client.query('truncate small, nothing')
      if (random() < 0.02) await sleep(1500)
    }
    await client.query(random() < 0.9 ? 'commit' : 'rollback')
    commits++
  }
  const all = randoms.map(async (random) => {
    await using client = await connected(url)
    while (!stopped) {
      // Two that wait for each other's rows: one of them begins anew.
      await write(client, random).catch(async () => await client.query('rollback'))
      await sleep(random() * 15)
    }
  })
  const stop = async (): Promise<number> => {
    stopped = true
    await Promise.all(all)
    return commits
  }
  return { stop, [Symbol.asyncDispose]: async () => void (await stop()) }
}

function generator(start: number): () => number {
  let state = start >>> 0
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 4294967296
  }
}
