import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { sql } from '../support/postgres.ts'
import { scene, untilEqual } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { toldBy, unlessKept, unlessWalked } from '../support/verification.ts'
import { until } from '../support/worker.ts'

describe('continuous verification', { ...needs('pg'), concurrency: 2 }, () => {
  it('by the pipeline itself: tells a row that is wrong soon after it is touched, until it is right again', async () => {
    const pg = await postgres(18)
    await using pipeline = await scene({
      source: await pg.database('watch_source'),
      target: await pg.database('watch_target'),
      mode: 'hybrid',
      // So slow that a second walk comes much later than the test's end.
      more: 'verify: { schedule: continuous, rate: 10 }',
    })
    await sql(pipeline.source, 'create table thing (id int primary key, name text, large text)')
    await sql(pipeline.source, 'alter table thing alter large set storage external')
    await sql(
      pipeline.source,
      `insert into thing select i, 'thing ' || i, repeat(i::text, 3000) from generate_series(1, 1000) i`,
    )
    const worker = pipeline.run()
    await untilEqual(pipeline, worker)
    await until(async () => await unlessWalked(pipeline, 1), { seconds: 60, worker })
    const walked = await toldBy(pipeline)
    assert.deepEqual(
      [walked?.verdict, walked?.last?.verdict, walked?.last?.rows, walked?.continuous?.changes.followed],
      ['equal', 'equal', 1000, true],
      JSON.stringify(walked),
    )
    await sql(pipeline.target, `update thing set large = 'spoilt' where id in (7, 8)`)
    await sql(pipeline.source, `update thing set name = 'touched' where id = 7`)
    await until(async () => await unlessKept(pipeline, ['public.thing 7 different large']), { seconds: 30, worker })
    const told = await toldBy(pipeline)
    assert.deepEqual([told?.verdict, told?.continuous?.walks], ['different', 1], JSON.stringify(told))
    const text = await pipeline.command(['status'])
    assert.match(text.stdout, /verified +✗ different/)
    assert.match(text.stdout, /public\.thing \(7\) differs in large/)
    await sql(pipeline.target, `update thing set large = repeat(id::text, 3000) where id in (7, 8)`)
    await until(async () => await unlessKept(pipeline, []), { seconds: 40, worker })
    assert.equal((await toldBy(pipeline))?.verdict, 'equal')
    const stopping = performance.now()
    assert.equal((await worker.stop()).code, 0)
    assert.ok(performance.now() - stopping < 15_000)
  })

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
    assert.equal((await pipeline.command(['verify', '--continuous'])).code, 1, 'only one at a time')
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
