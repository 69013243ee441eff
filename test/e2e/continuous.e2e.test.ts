import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { sql } from '../support/postgres.ts'
import { scene, untilEqual } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { toldBy, unlessKept, unlessWalked } from '../support/verification.ts'
import { until } from '../support/worker.ts'

describe('continuous verification', needs('pg'), () => {
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
    await sql(pipeline.target, `update thing set large = 'spoilt' where id in (7, 8)`)
    await sql(pipeline.source, `update thing set name = 'touched' where id = 7`)
    await until(async () => await unlessKept(pipeline, ['public.thing 7 different large']), { seconds: 30, worker })
    const [told, text] = await Promise.all([toldBy(pipeline), pipeline.command(['status'])])
    assert.deepEqual([told?.verdict, told?.continuous?.walks], ['different', 1], JSON.stringify(told))
    assert.match(text.stdout, /verified +✗ different/)
    assert.match(text.stdout, /public\.thing \(7\) differs in large/)
    await sql(pipeline.target, `update thing set large = repeat(id::text, 3000) where id in (7, 8)`)
    await sql(pipeline.source, `update thing set name = 'touched again' where id = 7`)
    await until(async () => await unlessKept(pipeline, []), { seconds: 40, worker })
    const after = await toldBy(pipeline)
    assert.deepEqual(
      [after?.verdict, after?.last?.verdict, after?.last?.rows, after?.continuous?.changes.followed],
      ['equal', 'equal', 1000, true],
      JSON.stringify(after),
    )
    const stopping = performance.now()
    assert.equal((await worker.stop()).code, 0)
    assert.ok(performance.now() - stopping < 15_000)
  })
})
