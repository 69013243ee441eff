import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, it } from 'node:test'
import { sql, startPostgres } from '../support/postgres.ts'
import { scene } from '../support/scene.ts'
import { needs } from '../support/servers.ts'
import { journalLines, told, verified, type VerifyReport } from '../support/verified.ts'
import { peakMemory, until } from '../support/worker.ts'

const seed = Number(process.env['CROSSFADE_SEED'] ?? Date.now() % 100_000)
const rows = 400_000
const jobs = 2

function seeded(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 4294967296
  }
}

describe('a verification of a large table', needs('pg'), () => {
  it('killed again and again goes on behind its last piece; in bounded memory names 200,000 rows', async (t) => {
    t.diagnostic(`CROSSFADE_SEED=${seed}`)
    const random = seeded(seed)
    await using server = await startPostgres()
    const [source, target] = [await server.createDatabase('killed_from'), await server.createDatabase('killed_to')]
    await sql(
      source,
      `create table big (id int primary key, name text);
       insert into big select i, 'name ' || i from generate_series(1, ${rows}) i;
       create table small (name text primary key, n int);
       insert into small select 'n' || i, i from generate_series(1, 30000) i; analyze`,
    )
    await using pipeline = await scene({ source, target, mode: 'hybrid' })
    const worker = pipeline.run()
    await until(
      async () =>
        (await pipeline.command(['status', '--json'])).stdout.includes('"streaming"') ? [] : ['not streaming'],
      { seconds: 120, worker },
    )
    /** Rows of `big` that anyone read at the source. */
    const read = async (): Promise<number> => {
      await until(
        async () =>
          (
            await sql(
              source,
              `select from pg_stat_activity where application_name like 'crossfade % reader' and datname = current_database()`,
            )
          ).length === 0
            ? []
            : ['still reading'],
        { seconds: 30 },
      )
      const [row] = await sql<{ n: number }>(
        source,
        `select (seq_tup_read + coalesce(idx_tup_fetch, 0))::int as n from pg_stat_user_tables where relname = 'big'`,
      )
      return row?.n ?? 0
    }
    await sql(target, `update big set name = name || '.' where id % 40000 = 7; delete from small where n = 77`)
    const expected = [
      ...Array.from({ length: rows / 40_000 }, (_, i) => `public.big different ${i * 40_000 + 7} name`),
      'public.small only source n77 ',
    ].toSorted()
    const args = ['verify', '--json', '--jobs', String(jobs), '--rate', '60000']
    const none = await read()
    const whole = await pipeline.command(args)
    assert.equal(whole.code, 1, whole.stdout + whole.stderr)
    assert.deepEqual(told(JSON.parse(whole.stdout) as VerifyReport).toSorted(), expected)
    const once = (await read()) - none

    let kills = 0
    let kept: readonly Record<string, unknown>[] = []
    for (;;) {
      const running = pipeline.start(args)
      const early = await Promise.race([running.ended, sleep(1_000 + random() * 3_000)])
      if (early !== undefined) {
        assert.equal(early.code, 1, early.stdout + early.stderr)
        break
      }
      await running.kill9()
      kills++
      // Whole pieces only, and those from before as they were; each line is JSON, but for one that was torn.
      const lines = await journalLines(pipeline).catch(async () => [...kept])
      assert.deepEqual(lines.slice(0, kept.length - trailing(kept)), kept.slice(0, kept.length - trailing(kept)))
      kept = lines
    }
    const lines = await journalLines(pipeline)
    const pieces = lines.filter(({ kind, table }) => kind === 'chunk' && table === 'public.big')
    const planned = (lines[0]?.['tables'] ?? []) as readonly { readonly table: string; readonly ranges: unknown[] }[]
    const ranges = planned.find(({ table }) => table === 'public.big')?.ranges.length ?? 0
    const numbers = pieces.flatMap(({ first, last }) =>
      Array.from({ length: Number(last) - Number(first) + 1 }, (_, i) => Number(first) + i),
    )
    assert.deepEqual(
      numbers.toSorted((a, b) => a - b),
      Array.from({ length: ranges }, (_, i) => i),
      'each range once',
    )
    const found = await pipeline.command(['verify', 'report', '--json'])
    assert.deepEqual(told(JSON.parse(found.stdout) as VerifyReport).toSorted(), expected)
    const again = (await read()) - none - once
    const largest = Math.max(...pieces.map(({ source }) => Number(source)))
    t.diagnostic(
      `${kills} kills; rows read at the source: ${once} without, ${again} with; a piece has at most ${largest}`,
    )
    assert.ok(kills >= 2, `${kills} kills`)
    // Of a piece that differs the rows are read a few times: digest, parts, rows.
    assert.ok(again <= once + kills * jobs * 4 * largest, `${again} rows read instead of ${once}`)

    await sql(target, `update big set name = name || ' ' where id % 2 = 0`)
    const began = performance.now()
    const running = pipeline.start(['verify', '--fresh'])
    let peak = 0
    while ((await Promise.race([running.ended, sleep(200)])) === undefined)
      peak = Math.max(peak, (await peakMemory(running.pid).catch(() => 0)) || 0)
    assert.equal((await running.ended).code, 1, running.output())
    t.diagnostic(
      `${rows / 2} rows named in ${((performance.now() - began) / 1000).toFixed(0)} s; peak memory ${Math.round(peak / 2 ** 20)} MiB`,
    )
    const all = (await journalLines(pipeline)).filter(
      ({ kind, table }) => kind === 'difference' && table === 'public.big',
    )
    const keys = new Set(all.map(({ key }) => Number((key as readonly string[])[0])))
    const differing = await sql<{ id: number }>(target, `select id from big where name <> 'name ' || id`)
    assert.equal(all.length, differing.length)
    assert.deepEqual(
      differing.filter(({ id }) => !keys.has(id)),
      [],
    )
    assert.ok(peak < 400 * 2 ** 20, `peak memory ${peak}`)

    // What an interrupted one had found is not told again once it was repaired.
    await sql(target, `update big set name = 'name ' || id where name <> 'name ' || id and id > 1000`)
    const wrong = `select id from big where name <> 'name ' || id order by id`
    const dying = pipeline.start(['verify', '--fresh', '--jobs', '1', '--rate', '60000'])
    await until(
      async () => ((await journalLines(pipeline)).some(({ different }) => different === 501) ? [] : ['not found yet']),
      {
        seconds: 60,
        worker: dying,
      },
    )
    await dying.kill9()
    const repaired = await pipeline.command(['repair', '--json'])
    // Mended, and what it had not come to is not known.
    assert.equal(repaired.code, 3, repaired.stdout + repaired.stderr)
    assert.deepEqual(await sql(target, wrong), [])
    const missing = await sql(target, `select from small where name = 'n77'`)
    const { report } = await verified(pipeline)
    assert.deepEqual(told(report), missing.length > 0 ? [] : ['public.small only source n77 '])
    assert.equal((await worker.stop()).code, 0)
  })
})

/** Lines of a piece that has not ended. */
function trailing(lines: readonly Record<string, unknown>[]): number {
  const last = lines.findLastIndex(({ kind }) => kind !== 'difference' && kind !== 'unsettled')
  return lines.length - last - 1
}
