import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { before, describe, it } from 'node:test'
import type { Failpoint } from '../../src/failpoint.ts'
import { logConfig } from '../support/kills.ts'
import { sql } from '../support/postgres.ts'
import { leftAtSource, scene, type Scene } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { compareShops, createShop, loadShop, pretendLarge, startWriters } from '../support/shop.ts'
import { until, type Worker } from '../support/worker.ts'

/** Which passings of a point kill, and in what kind of run; embedded log and `hybrid` where nothing is said. */
type Deaths = {
  readonly passings: readonly number[]
  readonly log?: 'kafka'
  readonly mode?: 'full'
  /** Tables over several partitions are truncated, and keys moved between partitions, again and again. */
  readonly barriers?: true
}
const once: Deaths = { passings: [1] }
const kafka = (...passings: number[]): Deaths => ({ passings, log: 'kafka' })
const atBarrier = (...passings: number[]): Deaths => ({ passings, barriers: true })
const full: Deaths = { passings: [1], mode: 'full' }

/** Every named place there is, but those of changes of tables (ddl.e2e.test.ts). One that is not passed fails its test. */
const places: Readonly<Record<Exclude<Failpoint, `ddl.${string}`>, Deaths>> = {
  'pipeline.after-lease': once,
  'store.before-write': { passings: [1, 4] },
  'store.after-write': { passings: [1, 12] },
  'setup.after-tables': once,
  'setup.between-topics-and-ids': kafka(1),
  'setup.after-topics': kafka(1),
  'own-tables.before-commit': once,
  'setup.after-own-tables': once,
  'setup.after-style': once,
  'schema.before-tables': once,
  'schema.after-tables': once,
  'setup.after-schema': once,
  'hold.before-commit': { passings: [1, 2, 3] },
  'setup.after-hold': once,
  'retain.after-intent': once,
  'retain.between-publication-and-slot': once,
  'retain.between-slot-and-snapshot': once,
  'retain.between-snapshot-and-record': once,
  'retain.after-record': once,
  'setup.between-retain-and-begun': once,
  'setup.after-begun': once,

  'copy.between-hold-and-snapshot': once,
  'copy.between-snapshot-and-hold': once,
  'copy.before-chunk': { passings: [1, 5] },
  'load.after-begin': { passings: [2] },
  'copy.in-chunk': { passings: [2, 9] },
  'load.before-mark': { passings: [3] },
  'load.before-commit': { passings: [4] },
  'copy.after-chunk': { passings: [1, 5] },
  'copy.before-complete': once,
  'schema.before-rest': { passings: [1, 2] },
  'schema.after-rest': { passings: [1, 2] },
  'copy.between-schema-and-counters': once,
  'copy.before-live': once,
  'copy.after-live': once,
  'capture.before-opening': once,
  'capture.in-opening': kafka(1, 2),
  'capture.before-append': kafka(1, 20),
  'capture.between-append-and-ack': kafka(1, 20),
  'capture.after-ack': kafka(1, 20),
  'claim.before-commit': { passings: [1, 3] },
  'apply.after-claim': once,
  'apply.before-commit': kafka(1, 20),
  'apply.between-commit-and-answer': kafka(1, 20),
  'apply.before-arrival': atBarrier(1, 4),
  'barrier.after-arrival': atBarrier(1, 2, 3),
  'barrier.before-effect': atBarrier(1),
  'barrier.between-effect-and-done': atBarrier(1, 3),
  'barrier.between-done-and-checkpoint': atBarrier(1),
  'barrier.before-commit': atBarrier(1, 2),
  'apply.after-arrival': atBarrier(1, 2, 3),
  'log.before-lock': once,
  'log.after-lock': once,
  'log.before-topic': { passings: [1, 3] },
  'log.after-topic': { passings: [1, 3] },
  'log.before-topics': kafka(1),
  'log.after-topics': kafka(1),
  'log.before-header': { passings: [1, 3] },
  'log.between-header-and-sync': { passings: [1, 3] },
  'log.between-segment-and-name': { passings: [2] },
  'log.after-segment': { passings: [2] },
  'log.between-write-and-sync': { passings: [3, 40] },
  'log.between-sync-and-answer': { passings: [3, 40] },
  'full.before-complete': full,
  'full.between-complete-and-release': full,
  'release.between-slot-and-publication': full,
  'release.between-publication-and-record': full,
  'full.between-release-and-record': full,
}

const barrierTables = ['basket', 'product']
let template = ''
const seed = Number(process.env['CROSSFADE_SEED'] ?? Date.now() % 100_000)

/** Barriers of one table and of several, in partitions of several lanes, from when `worker` streams (a truncate restarts a copy) until `stopped`. */
async function stir(url: string, worker: Worker, stopped: () => boolean): Promise<void> {
  while (!worker.printed().includes(' streaming ') && !stopped()) await sleep(50)
  for (let n = 0; !stopped(); n++) {
    await sql(url, `insert into basket select i, ${n} from generate_series(1, 20) i on conflict do nothing`)
    if (n % 3 === 0) await sql(url, 'truncate basket')
    // The large picture is not sent again: the row is moved at the target.
    await sql(url, `update product set id = id + 5000 where id = ${(n % 80) + 1}`).catch(() => {})
    await sleep(50)
  }
}

async function dies(point: Failpoint, passing: number, deaths: Deaths): Promise<string> {
  const pg = await postgres(18)
  const source = await pg.database('failpoint_source', new URL(template).pathname.slice(1))
  const target = await pg.database('failpoint_target')
  if (deaths.barriers) await pretendLarge(source, barrierTables)
  await using pipeline = await scene({
    source,
    target,
    mode: deaths.mode ?? 'hybrid',
    log: await logConfig(deaths.log ?? 'embedded', 3),
    more: 'snapshot: { parallel: 2, chunkRows: 300 }\napply: { lanes: 3 }\n',
  })
  const writers = deaths.mode === 'full' ? undefined : startWriters(source, { seed, writers: 2, pause: 8 })
  let stopped = false
  const first = pipeline.run([], { CROSSFADE_FAILPOINT: `${point}:${passing}` })
  const stirring = deaths.barriers && stir(source, first, () => stopped)
  try {
    const killed = await ending(first)
    assert.equal(killed.signal, 'SIGKILL', `the point was not passed:\n${killed.stdout}${killed.stderr}`)
    const next = pipeline.run()
    if (writers === undefined) {
      const end = await ending(next)
      assert.equal(end.code, 0, end.stdout + end.stderr)
      assert.deepEqual(await compareShops(source, target, undefined), [])
      assert.deepEqual(await leftAtSource(pipeline), [])
    } else {
      stopped = true
      await stirring
      await until(async () => (/ streaming /.test(next.printed()) ? [] : ['not streaming yet']), {
        seconds: 120,
        worker: next,
      })
      const written = await writers.stop()
      await until(async () => await compareShops(source, target, written), { seconds: 120, worker: next })
      assert.equal((await next.stop()).code, 0)
      await tidy(pipeline)
    }
    return `killed at ${point}, passing ${passing}, after ${killed.seconds} s`
  } finally {
    stopped = true
    await writers?.stop()
  }
}
async function ending(worker: Worker): Promise<Awaited<Worker['ended']> & { readonly seconds: string }> {
  const began = performance.now()
  const limit = new AbortController()
  const late = sleep(120_000, undefined, { signal: limit.signal }).then(
    () => Promise.reject(new Error(`it still runs:\n${worker.output().slice(-6000)}`)),
    () => new Promise<never>(() => {}),
  )
  try {
    const end = await Promise.race([worker.ended, late])
    return { ...end, seconds: ((performance.now() - began) / 1000).toFixed(1) }
  } finally {
    limit.abort()
  }
}
/** One slot and one publication, whatever was repeated; and they go, so that the server keeps nothing for so many of them. */
async function tidy(pipeline: Scene): Promise<void> {
  const { source, name } = pipeline
  assert.deepEqual([...(await leftAtSource(pipeline))].toSorted(), [
    `publication crossfade_${name}`,
    `slot crossfade_${name}`,
  ])
  await until(
    async () =>
      await sql(source, `select pg_drop_replication_slot('crossfade_${name}')`).then(
        () => [],
        (error: unknown) => [String(error)],
      ),
    { seconds: 30 },
  )
}

describe('a worker that dies at a named place', { ...needs('pg', 'kafka'), concurrency: 2 }, () => {
  before(async () => {
    template = await (await postgres(18)).database('failpoint_shop')
    await createShop(template)
    await loadShop(template, 3000)
    await sql(template, `insert into basket values (1, 1)`)
    await sql(
      template,
      `update product set picture = (select string_agg(decode(md5((id + i)::text), 'hex'), '') from generate_series(1, 400) i)`,
    )
  })
  for (const [point, deaths] of Object.entries(places) as [Failpoint, Deaths][]) {
    for (const passing of deaths.passings) {
      it(`${point}, passing ${passing}`, async (t) => {
        t.diagnostic(`CROSSFADE_SEED=${seed}`)
        t.diagnostic(await dies(point, passing, deaths))
      })
    }
  }
})
