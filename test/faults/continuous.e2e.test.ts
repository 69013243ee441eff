import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { scene, untilEqual } from '../support/scene.ts'
import { seed, shopPipeline, through } from '../support/hurt.ts'
import { logConfig } from '../support/kills.ts'
import { sql } from '../support/postgres.ts'
import { startProxy } from '../support/proxy.ts'
import { needs, postgres } from '../support/servers.ts'
import { startWriters } from '../support/shop.ts'
import { kept, rowsTold, toldBy, unlessKept, unlessWalked } from '../support/verification.ts'
import { until, type Worker } from '../support/worker.ts'

const ways = [
  { name: 'a process of its own, over Kafka', log: 'kafka', inside: false },
  { name: 'the pipeline itself, with the embedded log', log: 'embedded', inside: true },
] as const

/** Of what it said at any time, what it should not have said. */
function listen(ask: () => Promise<readonly string[]>): AsyncDisposable & { stop(): Promise<ReadonlySet<string>> } {
  const heard = new Set<string>()
  let stopped = false
  const listening = (async () => {
    while (!stopped) {
      for (const word of await ask()) heard.add(word)
      await sleep(300)
    }
  })()
  const stop = async (): Promise<ReadonlySet<string>> => {
    stopped = true
    await listening
    return heard
  }
  return { stop, [Symbol.asyncDispose]: async () => void (await stop()) }
}

describe('continuous verification under writes', { ...needs('pg', 'kafka'), concurrency: 2 }, () => {
  for (const { name, log, inside } of ways) {
    it(`H20, H21: by ${name}: no false alarm, through deaths and an outage; what is spoilt is told, repaired and closed`, async (t) => {
      t.diagnostic(`CROSSFADE_SEED=${seed}`)
      const pg = await postgres(18)
      const source = await pg.database('goes_on_source')
      const target = await pg.database('goes_on_target')
      await sql(source, 'create table still (id int primary key, name text)')
      await sql(source, `insert into still select i, 'still ' || i from generate_series(1, 3000) i`)
      await using way = await startProxy(Number(new URL(target).port))
      const env = { TARGET_URL: through(target, way) }
      await using shop = await shopPipeline({
        source,
        target,
        log: await logConfig(log),
        env: inside ? env : {},
        more: `verify: { schedule: ${inside ? 'continuous' : 'off'} }`,
      })
      const { scene: pipeline } = shop
      const start = (): Worker =>
        inside ? (shop.worker = pipeline.run([], env)) : pipeline.start(['verify', '--continuous'], env)
      let verifier = inside ? shop.worker : start()
      await using alarms = listen(async () =>
        rowsTold((await kept(pipeline))?.open.rows ?? []).filter((row) => !row.endsWith('unknown')),
      )
      const writers = startWriters(source, { writers: 2, pause: 20, seed })
      await using _ = { [Symbol.asyncDispose]: async () => void (await writers.stop()) }
      const walkOn = async (): Promise<void> => {
        const { walks = 0, changes } = (await kept(pipeline)) ?? {}
        await until(async () => await unlessWalked(pipeline, walks + 1), { seconds: 90, worker: verifier })
        const looked = (await kept(pipeline))?.changes.looked ?? 0
        assert.ok(looked > (changes?.looked ?? 0), `no row was looked at after it changed: ${looked}`)
      }
      await walkOn()
      await verifier.kill9()
      t.diagnostic('fault: kill -9')
      verifier = start()
      await walkOn()
      way.refuse(true)
      way.cut()
      await sleep(5_000)
      way.refuse(false)
      t.diagnostic('fault: the target was away for 5 s')
      await walkOn()
      const explicit = await pipeline.command(['verify', '--json'])
      assert.equal(explicit.code, 0, explicit.stdout + explicit.stderr)
      await writers.stop()
      await shop.equal()
      await until(async () => await unlessKept(pipeline, []), { seconds: 60, worker: verifier })
      assert.deepEqual([...(await alarms.stop())], [])
      const told = await toldBy(pipeline)
      t.diagnostic(JSON.stringify(told?.continuous?.changes))
      await walkOnAfter(pipeline, verifier)
      const standing = await toldBy(pipeline)
      assert.equal(standing?.verdict, 'equal', JSON.stringify(standing))

      await sql(target, `update still set name = 'spoilt' where id = 1500`)
      await sql(target, 'delete from still where id = 2500')
      const wrong = ['public.still 1500 different name', 'public.still 2500 only source ']
      await until(async () => await unlessKept(pipeline, wrong), { seconds: 60, worker: verifier })
      const repaired = await pipeline.command(['repair', '--json'])
      assert.equal(repaired.code, 0, repaired.stdout + repaired.stderr)
      assert.deepEqual(await pipeline.differences(['still']), [])
      await until(async () => await unlessKept(pipeline, []), { seconds: 60, worker: verifier })
      const stopping = performance.now()
      const end = await verifier.stop()
      assert.equal(end.code, 0, end.stdout + end.stderr)
      const seconds = (performance.now() - stopping) / 1000
      t.diagnostic(`stopped in ${seconds.toFixed(1)} s`)
      assert.ok(seconds < 20)
      if (!inside) await shop.end()
    })
  }
})

describe('continuous verification without an end', needs('pg'), () => {
  it('by a process of its own: tells a row that nobody touches within one walk, and its exit code says how it stands', async () => {
    const pg = await postgres(18)
    await using pipeline = await scene({
      source: await pg.database('watched_source'),
      target: await pg.database('watched_target'),
      mode: 'hybrid',
    })
    await sql(pipeline.source, 'create table thing (id int primary key, name text)')
    await sql(pipeline.source, `insert into thing select i, 'thing ' || i from generate_series(1, 1000) i`)
    const worker = pipeline.run()
    await untilEqual(pipeline, worker)
    const first = pipeline.start(['verify', '--continuous'])
    await until(async () => await unlessWalked(pipeline, 1), { seconds: 60, worker: first })
    assert.equal((await pipeline.command(['verify', '--continuous'])).code, 3, 'only one at a time')
    await sql(pipeline.target, 'delete from thing where id = 500')
    await until(async () => await unlessKept(pipeline, ['public.thing 500 only source ']), {
      seconds: 40,
      worker: first,
    })
    const end = await first.stop()
    assert.equal(end.code, 1, end.stdout + end.stderr)
    assert.match(end.stdout, /public\.thing \(500\) is only source/)
    await sql(pipeline.target, `insert into thing values (500, 'thing 500')`)
    const second = pipeline.start(['verify', '--continuous', '--json'])
    await until(async () => await unlessKept(pipeline, []), { seconds: 40, worker: second })
    const equal = await second.stop()
    assert.equal(equal.code, 0, equal.stdout + equal.stderr)
    assert.equal((JSON.parse(equal.stdout) as { verification: { verdict: string } }).verification.verdict, 'equal')
    assert.equal((await worker.stop()).code, 0)
  })
})

/** A whole walk that began after this call. */
async function walkOnAfter(scene: Parameters<typeof kept>[0], worker: Worker): Promise<void> {
  const { walks = 0 } = (await kept(scene)) ?? {}
  await until(async () => await unlessWalked(scene, walks + 2), { seconds: 90, worker })
}
