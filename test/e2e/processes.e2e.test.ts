import assert from 'node:assert/strict'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { sql } from '../support/postgres.ts'
import { startProxy } from '../support/proxy.ts'
import {
  assertRefusal,
  createThings,
  keepsSecret,
  leftAtSource,
  scene,
  untilEqual,
  type Scene,
} from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { until, type Worker } from '../support/worker.ts'

async function prepared(rows = 1000, options: Partial<Parameters<typeof scene>[0]> = {}): Promise<Scene> {
  const pg = await postgres(18)
  const [source, target] = [await pg.database('processes_source'), await pg.database('processes_target')]
  await createThings(source, rows)
  return await scene({ source, target, mode: 'hybrid', ...options })
}
async function shows(worker: Worker, text: string | RegExp): Promise<void> {
  await until(async () => (worker.output().search(text) >= 0 ? [] : [`it does not say ${text}`]), {
    seconds: 40,
    worker,
  })
}
const insert = async ({ source }: Scene, id: number): Promise<unknown> =>
  await sql(source, `insert into thing values (${id}, 'later')`)

describe('processes of one pipeline', { ...needs('pg'), concurrency: 3 }, () => {
  it('stand by one behind the other, and take over when the first is killed', async () => {
    await using pipeline = await prepared()
    const first = pipeline.run()
    await untilEqual(pipeline, first)
    const second = pipeline.run()
    await shows(second, 'standing by until it ends')
    assert.match(second.output(), new RegExp(`"by":"[^"]*/${first.pid}"`))
    await shows(second, /standby/)
    await insert(pipeline, 5001)
    await untilEqual(pipeline, first)
    await first.kill9()
    await insert(pipeline, 5002)
    await untilEqual(pipeline, second)
    assert.match(second.output(), /taken over/)
    const end = await second.stop()
    assert.equal(end.code, 0, end.stderr)
    keepsSecret(end)
  })

  it('end with 0 at the first SIGINT, and leave nothing that a next one waits for', async () => {
    await using pipeline = await prepared(40_000, { more: 'snapshot: { parallel: 2, chunkRows: 400 }' })
    const copying = pipeline.run()
    await shows(copying, ' copying ')
    process.kill(copying.pid, 'SIGINT')
    const early = await copying.ended
    assert.equal(early.code, 0, early.stderr)
    assert.match(early.stdout, /stopped cleanly/)
    const streaming = pipeline.run()
    await untilEqual(pipeline, streaming)
    await insert(pipeline, 500_001)
    process.kill(streaming.pid, 'SIGINT')
    const late = await streaming.ended
    assert.equal(late.code, 0, late.stderr)
    const next = pipeline.run()
    await untilEqual(pipeline, next)
    const end = await next.stop()
    assert.equal(end.code, 0, end.stderr)
    for (const { stderr } of [late, end]) assert.doesNotMatch(stderr, /standing by/)
  })

  it('end at once, with 130, at the second SIGINT', async () => {
    await using pipeline = await prepared()
    const { port } = new URL(pipeline.target)
    await using proxy = await startProxy(Number(port))
    const target = new URL(pipeline.target)
    target.port = String(proxy.port)
    const worker = pipeline.run([], { TARGET_URL: target.href })
    await untilEqual(pipeline, worker)
    // What is in hand cannot be finished.
    proxy.pause()
    await insert(pipeline, 5001)
    process.kill(worker.pid, 'SIGINT')
    await shows(worker, 'once more to stop at once')
    const began = performance.now()
    process.kill(worker.pid, 'SIGINT')
    assert.equal((await worker.ended).code, 130)
    assert.ok(performance.now() - began < 2000)
    proxy.resume()
    const next = pipeline.run()
    await untilEqual(pipeline, next)
    assert.equal((await next.stop()).code, 0)
  })

  it('end by themselves at the first SIGINT where the target says nothing any more', async () => {
    await using pipeline = await prepared()
    const { port } = new URL(pipeline.target)
    await using proxy = await startProxy(Number(port))
    const target = new URL(pipeline.target)
    target.port = String(proxy.port)
    const worker = pipeline.run([], { TARGET_URL: target.href })
    await untilEqual(pipeline, worker)
    proxy.pause()
    await insert(pipeline, 5001)
    process.kill(worker.pid, 'SIGINT')
    const silent = AbortSignal.timeout(60_000)
    silent.addEventListener('abort', () => process.kill(worker.pid, 'SIGKILL'), { once: true })
    const end = await worker.ended
    assert.equal(end.code, 0, end.stderr)
    proxy.resume()
    const next = pipeline.run()
    await untilEqual(pipeline, next)
    assert.equal((await next.stop()).code, 0)
  })

  it('end with 0 at SIGTERM while they stand by, and at SIGHUP with what is in hand finished', async () => {
    await using pipeline = await prepared(10)
    const first = pipeline.run()
    await untilEqual(pipeline, first)
    const second = pipeline.run()
    await shows(second, 'standing by until it ends')
    assert.equal((await second.stop()).code, 0)
    await insert(pipeline, 5001)
    await untilEqual(pipeline, first)
    process.kill(first.pid, 'SIGHUP')
    const end = await first.ended
    assert.deepEqual([end.code, end.signal], [0, null], end.stderr)
    assert.match(end.stdout, / stopping [^]*stopped cleanly/)
  })

  it('do not share an embedded log', async () => {
    await using pipeline = await prepared()
    const worker = pipeline.run()
    await untilEqual(pipeline, worker)
    const other = await (await postgres(18)).database('processes_other')
    const log = `{ type: embedded, dir: "${join(pipeline.work.dir, '.crossfade/log')}", partitions: 2 }`
    await using second = await scene({ source: pipeline.source, target: other, name: pipeline.name, log })
    const refusal = await second.refused()
    assertRefusal(refusal, 'LOG_IN_USE', 1)
    assert.match(refusal.error.object ?? '', new RegExp(pipeline.work.dir))
    await insert(pipeline, 5001)
    await untilEqual(pipeline, worker)
    assert.equal((await worker.stop()).code, 0)
  })
})

type StatusDocument = {
  readonly v: number
  readonly phase: string
  readonly verdict: string
  readonly source: {
    readonly slot: string | null
    readonly position: string | null
    readonly retainedBytes: string | null
  }
  readonly lag: { readonly seconds: number | null; readonly proved: boolean }
  readonly tables: readonly { readonly name: string; readonly state: string; readonly rows: string }[]
  readonly target: { readonly position: string | null }
  readonly error: {
    readonly code: string
    readonly object?: string
    readonly next?: string
    readonly at: number
  } | null
}

describe('the status of a pipeline', needs('pg'), () => {
  it('tells apart what never began, runs, has stopped, and has lost its slot', async () => {
    await using pipeline = await prepared()
    const ask = async (): Promise<StatusDocument> => {
      const { code, stdout, stderr } = await pipeline.command(['status', '--json'])
      assert.equal(code, 0, stderr)
      return JSON.parse(stdout) as StatusDocument
    }
    const never = await ask()
    assert.deepEqual([never.phase, never.verdict, never.tables, never.error], ['stopped', 'unknown', [], null])

    const worker = pipeline.run(['--json'])
    await untilEqual(pipeline, worker)
    await shows(worker, '"phase":"streaming"')
    const running = await ask()
    assert.equal(running.v, 1)
    assert.deepEqual([running.phase, running.verdict, running.error], ['streaming', 'unknown', null])
    assert.deepEqual(running.lag.proved, false)
    assert.equal(running.source.slot, `crossfade_${pipeline.name}`)
    assert.match(running.source.position ?? '', /^[0-9a-f]{16}$/)
    assert.match(running.source.retainedBytes ?? '', /^\d+$/)
    assert.deepEqual(
      running.tables.map(({ name, state, rows }) => [name, state, rows]),
      [['public.thing', 'live', '1000']],
    )
    // What only a copy under way needs is gone with it.
    const kept = `select (select count(*)::int from crossfade.chunk) as chunks,
      (select count(*)::int from crossfade.state where key like 'lease/chunk/%') as leases`
    await until(
      async () =>
        (await sql(pipeline.target, kept)).every(({ chunks, leases }) => chunks === 0 && leases === 0) ? [] : [kept],
      { seconds: 10, worker },
    )
    const end = await worker.stop()
    assert.equal(end.code, 0, end.stderr)
    const lines = end.stdout.trimEnd().split('\n')
    const documents = lines.map((line) => JSON.parse(line) as Partial<StatusDocument> & { outcome?: string })
    assert.ok(documents.some(({ lag }) => lag?.proved === true && typeof lag.seconds === 'number'))
    assert.equal(documents.at(-1)?.outcome, 'stopped')

    const stopped = await ask()
    assert.deepEqual([stopped.phase, stopped.verdict, stopped.error], ['stopped', 'unknown', null])
    const text = await pipeline.command(['status'])
    assert.match(text.stdout, /stopped {2}\? unknown/)
    assert.match(text.stdout, /unknown: nothing proves it/)
    assert.match(stopped.target.position ?? '', /^[0-9a-f]{16}$/)
    assert.match(text.stdout, new RegExp(`target +at ${stopped.target.position}, committed .* ago`))

    await sql(pipeline.source, `select pg_drop_replication_slot('crossfade_${pipeline.name}')`)
    const lost = await ask()
    assert.deepEqual([lost.verdict, lost.error?.code], ['failed', 'SLOT_LOST'])
    const began = Date.now()
    assertRefusal(await pipeline.refused(), 'SLOT_LOST', 1)
    const failed = await ask()
    assert.deepEqual([failed.phase, failed.verdict, failed.error?.code], ['failed', 'failed', 'SLOT_LOST'])
    assert.equal(failed.error?.object, `slot crossfade_${pipeline.name}`)
    assert.ok((failed.error?.next ?? '') !== '' && (failed.error?.at ?? 0) >= began)
    assert.equal(failed.target.position, stopped.target.position)
    await sql(pipeline.source, `drop publication crossfade_${pipeline.name}`)
    assert.deepEqual(await leftAtSource(pipeline), [])
  })
  it('of a full copy that is complete says so, with tables and rows, as the last line of its run does', async () => {
    await using pipeline = await prepared(1000, { mode: 'full' })
    const what = '1 table, 1,000 rows: one exact state of the source'
    for (const run of ['first', 'again']) {
      const { code, stdout } = await pipeline.command(['run'])
      assert.equal(code, 0, stdout)
      const [line = '', last = ''] = stdout.trimEnd().split('\n').slice(-2)
      assert.match(line, new RegExp(` ${pipeline.name} complete \\| ${what}$`), run)
      assert.match(last, new RegExp(` ${pipeline.name} is complete: ${what}\\.$`), run)
    }
    const { stdout } = await pipeline.command(['status'])
    assert.match(stdout, new RegExp(`complete {2}● ok\n +copied +${what}\n +source +keeps nothing for us any more\n`))
    assert.match(stdout, /public\.thing +copied +1\/1 +1,000\n/)
  })
})
