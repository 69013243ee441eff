import assert from 'node:assert/strict'
import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it, type TestContext } from 'node:test'
import { startPostgres, sql, type PostgresServer } from '../support/postgres.ts'
import { scene, untilEqual, type Scene } from '../support/scene.ts'
import { needs } from '../support/servers.ts'
import { connected } from '../support/shop.ts'
import { peakMemory, until } from '../support/worker.ts'

const mebibyte = 2 ** 20

describe('transactions that are large, long, many or prepared', needs('pg'), () => {
  let server: PostgresServer
  let made = 0
  // Transactions in progress are sent from the first bytes on.
  before(async () => {
    server = await startPostgres({ settings: { logical_decoding_work_mem: '64kB', autovacuum: 'off' } })
  })
  after(async () => {
    await server[Symbol.asyncDispose]()
  })
  /** With a first row, whose arrival says that changes are streamed. */
  async function prepared(table: string, first: string): Promise<Scene> {
    const [source, target] = [
      await server.createDatabase(`source${++made}`),
      await server.createDatabase(`target${made}`),
    ]
    await sql(source, `${table}; insert into entry ${first}`)
    return await scene({ source, target, mode: 'hybrid' })
  }

  it('twenty in progress at once, half of them aborted, with parts that are rolled back, end in the same rows', async (t) => {
    const seed = Number(process.env['CROSSFADE_SEED'] ?? Date.now() % 1_000_000)
    t.diagnostic(`seed ${seed}`)
    const random = seeded(seed)
    await using pipeline = await prepared(
      'create table entry (writer int, n int, body text, primary key (writer, n))',
      `values (-1, 0, '')`,
    )
    const worker = pipeline.run()
    await untilEqual(pipeline, worker, 80, ['entry'])
    const clients = await Promise.all(Array.from({ length: 20 }, async () => await connected(pipeline.source)))
    try {
      for (const client of clients) await client.query('begin')
      for (let part = 0; part < 8; part++) {
        for (const [writer, client] of clients.entries()) {
          await client.query(
            `savepoint a; insert into entry select ${writer}, ${1000 * part} + i, repeat(md5(i::text), 10) from generate_series(1, 100) i`,
          )
          // Rolled back itself, with one inside of it, or released and rolled back with the one around it.
          const fate = random()
          if (fate < 0.25) await client.query('rollback to savepoint a')
          else if (fate < 0.5)
            await client.query(
              `savepoint b; update entry set body = 'never' where writer = ${writer}; rollback to savepoint b`,
            )
          else if (fate < 0.7)
            await client.query(`delete from entry where writer = ${writer} and n % 7 = 0; release savepoint a`)
        }
      }
      for (const [writer, client] of clients.map((client, i) => [i, client] as const).toSorted(() => random() - 0.5))
        await client.query(writer % 2 === 0 ? 'commit' : 'rollback')
    } finally {
      for (const client of clients) await client.end()
    }
    await untilEqual(pipeline, worker, 80, ['entry'])
    const [slot] = await sql(pipeline.source, 'select stream_txns::int as streamed from pg_stat_replication_slots')
    const [rows] = await sql(pipeline.target, 'select count(distinct writer)::int as writers from entry')
    assert.equal(rows?.['writers'], 11)
    t.diagnostic(`${String(slot?.['streamed'])} transactions came while they were in progress`)
    assert.ok(Number(slot?.['streamed']) >= 5, JSON.stringify(slot))
    assert.equal((await worker.stop()).code, 0)
  })

  it('a prepared one that is committed much later, by when worker and server were ended, arrives once', async (t) => {
    await using pipeline = await prepared(
      'create table entry (n int, body text); alter table entry replica identity full',
      `values (-1, '')`,
    )
    let worker = pipeline.run()
    await untilEqual(pipeline, worker, 80, ['entry'])
    const write = async (n: number): Promise<void> =>
      void (await sql(pipeline.source, `insert into entry values (${n}, 'meanwhile')`))
    for (const [name, rows] of [
      ['small', 3],
      ['large', 3000],
      ['dropped', 3000],
    ] as const)
      await sql(
        pipeline.source,
        `begin; insert into entry select i, repeat(md5(i::text), 10) from generate_series(1, ${rows}) i; prepare transaction '${name}'`,
      )
    for (let n = 0; n < 2; n++) {
      await write(n)
      await untilEqual(pipeline, worker, 80, ['entry'])
      await worker.kill9()
      await write(10 + n)
      worker = pipeline.run()
    }
    await untilEqual(pipeline, worker, 80, ['entry'])
    // Long before its commit the places it began at are acknowledged, as far as the slot lets go.
    await server.stop()
    await server.restart()
    await write(20)
    await untilEqual(pipeline, worker, 80, ['entry'])
    await sql(pipeline.source, `commit prepared 'large'`)
    await untilEqual(pipeline, worker, 80, ['entry'])
    await worker.kill9()
    await sql(pipeline.source, `rollback prepared 'dropped'`)
    await sql(pipeline.source, `commit prepared 'small'`)
    t.diagnostic(
      'fault: three transactions stayed prepared through four deaths of the worker and a restart of both servers',
    )
    worker = pipeline.run()
    await untilEqual(pipeline, worker, 80, ['entry'])
    const [rows] = await sql(pipeline.target, 'select count(*)::int as n from entry')
    assert.equal(rows?.['n'], 3009)
    assert.equal((await worker.stop()).code, 0)
  })

  it('fifty thousand of one row', async (t) => {
    await using pipeline = await prepared('create table entry (n int primary key, body text)', `values (0, '')`)
    const worker = pipeline.run()
    await untilEqual(pipeline, worker, 80, ['entry'])
    const began = performance.now()
    await sql(
      pipeline.source,
      `do $$ begin for i in 1..50000 loop
         insert into entry values (i, 'first'); commit;
         if i % 10 = 0 then update entry set body = 'second' where n = i - 5; commit; end if;
       end loop; end $$`,
    )
    await arrived(pipeline, worker, 50_001, 150)
    await untilEqual(pipeline, worker, 80, ['entry'])
    await tell(t, worker.pid, `${Math.round(performance.now() - began)} ms`)
    assert.equal((await worker.stop()).code, 0)
  })

  it('one of two million rows, within its memory', async (t) => {
    await using pipeline = await prepared('create table entry (n int primary key, body text)', `values (0, '')`)
    const worker = pipeline.run()
    await untilEqual(pipeline, worker, 80, ['entry'])
    const began = performance.now()
    let spooled = 0
    const watch = setInterval(() => {
      void spoolBytes(pipeline).then((bytes) => (spooled = Math.max(spooled, bytes)))
    }, 500)
    try {
      await sql(pipeline.source, `insert into entry select i, md5(i::text) from generate_series(1, 2000000) i`)
      await arrived(pipeline, worker, 2_000_001, 240)
    } finally {
      clearInterval(watch)
    }
    await untilEqual(pipeline, worker, 60, ['entry'])
    const peak = await tell(
      t,
      worker.pid,
      `${Math.round(performance.now() - began)} ms, ${Math.round(spooled / mebibyte)} MB on disk`,
    )
    assert.ok(peak < 300 * mebibyte, `${peak} bytes`)
    // Its messages, and no more: about 30 bytes a row beside its values.
    assert.ok(spooled > 100 * mebibyte && spooled < 400 * mebibyte, `${spooled} bytes`)
    assert.equal((await worker.stop()).code, 0)
    assert.equal(await spoolBytes(pipeline), 0)
  })

  it('a thousand moves of keys with values that are not sent again', async (t) => {
    await using pipeline = await prepared(
      'create table entry (n int primary key, note text, body text); alter table entry alter body set storage external',
      `select i, '', repeat(md5(i::text), 100) from generate_series(1, 1000) i`,
    )
    const worker = pipeline.run()
    await untilEqual(pipeline, worker, 80, ['entry'])
    const began = performance.now()
    await sql(pipeline.source, `update entry set n = n + 100000, note = 'moved'`)
    await untilEqual(pipeline, worker, 200, ['entry'])
    await tell(t, worker.pid, `${Math.round(performance.now() - began)} ms`)
    assert.equal((await worker.stop()).code, 0)
  })
})

/** Counts first: comparing contents again and again would be most of the work. */
async function arrived(
  pipeline: Scene,
  worker: Parameters<typeof untilEqual>[1],
  rows: number,
  seconds: number,
): Promise<void> {
  const count = async (): Promise<readonly string[]> => {
    const [found] = await sql(pipeline.target, 'select count(*)::int as n from entry')
    return found?.['n'] === rows ? [] : [`${String(found?.['n'])} of ${rows}`]
  }
  await until(count, { seconds, worker })
}

async function tell(t: TestContext, pid: number, what: string): Promise<number> {
  const peak = await peakMemory(pid)
  t.diagnostic(`${what}, peak RSS ${Math.round(peak / mebibyte)} MB`)
  return peak
}

/** What the transactions in progress take on the disk. */
async function spoolBytes({ work }: Scene): Promise<number> {
  const files = await readdir(join(work.dir, '.crossfade'), { recursive: true }).catch(() => [])
  const sizes = await Promise.all(
    files
      .filter((name) => name.endsWith('.spool'))
      .map(async (name) =>
        stat(join(work.dir, '.crossfade', name)).then(
          ({ size }) => size,
          () => 0,
        ),
      ),
  )
  return sizes.reduce((sum, size) => sum + size, 0)
}

function seeded(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 4294967296
  }
}
