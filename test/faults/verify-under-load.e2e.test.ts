import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, it } from 'node:test'
import { sql, startPostgres } from '../support/postgres.ts'
import { scene, untilEqual, type Scene } from '../support/scene.ts'
import { needs } from '../support/servers.ts'
import { connected } from '../support/shop.ts'
import { told, verified } from '../support/verified.ts'
import { until, type Worker } from '../support/worker.ts'

const seconds = Number(process.env['CROSSFADE_VERIFY_SECONDS'] ?? 60)
const corruptEvery = seconds > 120 ? 60 : 10
const rate = 3_000

/** Rows up to `busy` are written to all the time, those above never. */
const busy = 50_000
const ddl = `
  create table item (id int primary key, v int, note text);
  insert into item select i, i, 'note ' || i from generate_series(1, ${busy + 1_000}) i;
  create table named (name text collate "en-x-icu" primary key, v int);
  insert into named select case when i % 2 = 0 then 'Name-' else 'name ' end || i, i from generate_series(1, 5500) i;
  create table loose (a int, b text);
  insert into loose select i % 300, 'b' || i % 300 from generate_series(1, 1200) i;
  alter table loose replica identity full;
  create table sales (region int, id int, amount numeric, primary key (region, id)) partition by list (region);
  create table sales_0 partition of sales for values in (0);
  create table sales_1 partition of sales for values in (1);
  insert into sales select i % 2, i, i * 1.5 from generate_series(1, 20000) i;
  create table badge (id int primary key, code text unique);
  insert into badge select i, 'code ' || i from generate_series(1, 5000) i;
  create table counter (id int primary key, n bigint, pad text);
  insert into counter select i, 0, 'pad' from generate_series(1, 10) i;
  analyze`
const tables = ['item', 'named', 'loose', 'sales_0', 'sales_1', 'badge', 'counter']

type Load = { rows(): number; stop(): Promise<void> }

/** Rows in batches of one commit each, all over the tables, and a few that are written to by themselves. */
async function load(url: string, counts: { readonly hot: number; readonly everyMs: number }): Promise<Load> {
  const clients = await Promise.all([connected(url), connected(url)])
  const [client, counting] = clients
  let rows = 0
  let stopped = false
  let n = 0
  const some = (count: number, most: number): string =>
    Array.from({ length: count }, () => 1 + Math.floor(Math.random() * most)).join(',')
  const began = performance.now()
  const write = async (text: string): Promise<void> => {
    const results = (await client?.query(text)) as unknown as readonly { readonly rowCount: number | null }[]
    for (const { rowCount } of results) rows += rowCount ?? 0
  }
  const batches = (async () => {
    while (!stopped) {
      // As many as the time that has passed asks for.
      if (rows > ((performance.now() - began) / 1000) * rate * 1.1) {
        await sleep(5)
        continue
      }
      n++
      const gone = some(15, busy)
      await write(`begin;
        update item set v = v + 1 where id in (${some(200, busy)});
        delete from item where id in (${gone});
        insert into item select id, ${n}, 'again' from unnest(array[${gone}]) id on conflict do nothing;
        update named set v = v + 1 where name in (select case when i % 2 = 0 then 'Name-' else 'name ' end || i from unnest(array[${some(30, 5000)}]) i);
        update sales set amount = amount + 0.5 where region in (0, 1) and id in (${some(60, 20_000)});
        commit`)
      if (n % 5 === 0)
        await write(`begin;
        update badge set code = 'code ' || id || ' ' || ${n} where id in (${some(20, 4000)});
        update loose set b = 'b' || ${n % 7} where ctid = (select ctid from loose where a = ${n % 250} limit 1);
        insert into loose values (${n % 250}, 'new'), (${n % 250}, 'new');
        delete from loose where ctid in (select ctid from loose where a = ${(n * 7) % 250} and b = 'new' limit 2);
        commit`)
      if (n % 20 === 0)
        await write(
          `begin; update sales set region = 1 - region where region in (0, 1) and id = ${1 + (n % 20_000)}; commit`,
        )
    }
  })()
  const hot = (async () => {
    const started = performance.now()
    for (let beat = 0; !stopped; beat++) {
      for (let id = 1; id <= counts.hot; id++) await counting?.query('update counter set n = n + 1 where id = $1', [id])
      await sleep(Math.max(0, started + (beat + 1) * counts.everyMs - performance.now()))
    }
  })()
  return {
    rows: () => rows,
    async stop() {
      stopped = true
      await Promise.all([batches, hot])
      for (const each of clients) await each.end()
    },
  }
}

/** A target that is held up again and again: for a while it lacks what the source shows. */
async function hiccups(url: string): Promise<{ stop(): Promise<void> }> {
  const client = await connected(url)
  let stopped = false
  const holding = (async () => {
    while (!stopped) {
      await client.query('begin; lock table item in share row exclusive mode')
      await sleep(600)
      await client.query('commit')
      await sleep(1_400)
    }
  })()
  return {
    async stop() {
      stopped = true
      await holding
      await client.end()
    },
  }
}

/** Of rows that nobody else writes to: what is done at the target, and what has to be said of it. */
const corruptions: readonly ((n: number) => {
  readonly statement: string
  readonly told: string
  readonly key: string
})[] = [
  (n) => ({
    statement: `update item set note = note || ' ' where id = ${busy + n}`,
    told: `public.item different ${busy + n} note`,
    key: `public.item ["${busy + n}"]`,
  }),
  (n) => ({
    statement: `delete from named where name = (case when ${5000 + n} % 2 = 0 then 'Name-' else 'name ' end) || ${5000 + n}`,
    told: `public.named only source ${n % 2 === 0 ? 'Name-' : 'name '}${5000 + n} `,
    key: `public.named ["${n % 2 === 0 ? 'Name-' : 'name '}${5000 + n}"]`,
  }),
  (n) => ({
    statement: `insert into loose values (${1000 + n}, 'alien')`,
    told: `public.loose copies ${1000 + n},alien 0:1`,
    key: `public.loose ["${1000 + n}","alien"]`,
  }),
  (n) => ({
    statement: `insert into sales values (1, ${1_000_000 + n}, 1)`,
    told: `public.sales_1 only target 1,${1_000_000 + n} `,
    key: `public.sales_1 ["1","${1_000_000 + n}"]`,
  }),
  (n) => ({
    statement: `update badge set code = 'alien ${n}' where id = ${4000 + n}`,
    told: `public.badge different ${4000 + n} code`,
    key: `public.badge ["${4000 + n}"]`,
  }),
]

async function streaming(pipeline: Scene, worker: Worker): Promise<void> {
  await until(
    async () =>
      (await pipeline.command(['status', '--json'])).stdout.includes('"streaming"') ? [] : ['not streaming'],
    { seconds: 120, worker },
  )
}

describe('a verification under load', needs('pg'), () => {
  it('H20: names no row that does not differ, and each that does, which repair mends', async (t) => {
    await using server = await startPostgres()
    const [source, target] = [await server.createDatabase('load_from'), await server.createDatabase('load_to')]
    await sql(source, ddl)
    await using pipeline = await scene({ source, target, mode: 'hybrid' })
    const worker = pipeline.run()
    await streaming(pipeline, worker)
    const began = performance.now()
    const passed = (): number => (performance.now() - began) / 1000
    const writers = await load(source, { hot: 4, everyMs: 20 })
    const hiccup = await hiccups(target)
    const open = new Map<string, number>()
    const touched = new Set<string>()
    const waits: number[] = []
    const count = {
      verdicts: { equal: 0, different: 0, unknown: 0 } as Record<string, number>,
      transient: 0,
      unsettled: 0,
      repaired: 0,
    }
    let corrupted = 0
    try {
      // One more round, or two, for what was corrupted last.
      while (passed() < seconds || open.size > 0) {
        if (passed() < seconds && passed() > (corrupted + 1) * corruptEvery) {
          const { statement, told, key } = corruptions[corrupted % corruptions.length]?.(corrupted + 1) ?? assert.fail()
          corrupted++
          await sql(target, statement)
          open.set(told, performance.now())
          touched.add(key)
        }
        const asked = performance.now()
        const { code, report } = await verified(pipeline, ['--fresh', '--settle', '30'])
        const found = told(report)
        const invented = found.filter((line) => !open.has(line))
        assert.deepEqual(invented, [], `false alarms: ${JSON.stringify(report)}`)
        assert.equal(code, { equal: 0, different: 1, unknown: 3 }[report.verdict])
        count.verdicts[report.verdict] = (count.verdicts[report.verdict] ?? 0) + 1
        for (const { transient, unsettled } of report.tables) {
          count.transient += transient
          count.unsettled += unsettled
        }
        for (const [line, at] of open)
          if (at < asked) assert.ok(found.includes(line) || performance.now() - at < 120_000, `${line} was not named`)
        if (found.length === 0) continue
        const repaired = await pipeline.command(['repair', '--json'])
        assert.equal(repaired.code, 0, repaired.stdout + repaired.stderr)
        for (const line of found) {
          waits.push((performance.now() - (open.get(line) ?? 0)) / 1000)
          open.delete(line)
          count.repaired++
        }
      }
    } finally {
      await Promise.all([writers.stop(), hiccup.stop()])
    }
    t.diagnostic(
      `${passed().toFixed(0)} s at ${Math.round(writers.rows() / passed())} row writes/s and 4 rows with 50 updates/s: ${JSON.stringify(count)}; corrupted ${corrupted}, found and mended within ${Math.max(0, ...waits).toFixed(0)} s`,
    )
    await untilEqual(pipeline, worker, 120, tables)
    const audit = (await readFile(join(pipeline.work.dir, '.crossfade', `${pipeline.name}.repairs.jsonl`), 'utf8'))
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as { readonly table: string; readonly key: readonly string[] })
    assert.deepEqual(new Set(audit.map(({ table, key }) => `${table} ${JSON.stringify(key)}`)), touched)
    const quiet = await verified(pipeline, ['--fresh'])
    assert.deepEqual([quiet.code, quiet.report.verdict], [0, 'equal'], JSON.stringify(quiet.report))
    assert.equal((await worker.stop()).code, 0)
  })

  it('settles rows that are written to 50, 200, 1,000 times a second and as often as two sessions can', async (t) => {
    await using server = await startPostgres()
    const [source, target] = [await server.createDatabase('hot_from'), await server.createDatabase('hot_to')]
    await sql(source, ddl)
    await using pipeline = await scene({ source, target, mode: 'hybrid' })
    const worker = pipeline.run()
    await streaming(pipeline, worker)
    for (const wanted of [50, 200, 1000, 10_000]) {
      let stopped = false
      let updates = 0
      const began = performance.now()
      const writing = Array.from({ length: wanted > 1000 ? 2 : 1 }, async () => {
        await using client = await connected(source)
        await client.query('set synchronous_commit = off')
        while (!stopped) {
          await client.query('update counter set n = n + 1 where id = 1')
          updates++
          const ahead = (updates / wanted) * 1000 - (performance.now() - began)
          if (ahead > 1) await sleep(ahead)
        }
      })
      const { code, report } = await verified(pipeline, ['--fresh', '--settle', '30', '--table', 'public.counter'])
      const seconds = (performance.now() - began) / 1000
      stopped = true
      await Promise.all(writing)
      const [table] = report.tables
      t.diagnostic(
        `a row updated ${Math.round(updates / seconds)} times/s: ${report.verdict} in ${seconds.toFixed(1)} s ${JSON.stringify(table)}`,
      )
      assert.deepEqual(report.differences, [])
      if (wanted <= 200) assert.equal(code, 0, JSON.stringify(report))
    }
    assert.equal((await worker.stop()).code, 0)
  })
})
