import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { definitionDiffers, keepWriting } from '../support/ddl.ts'
import { sql } from '../support/postgres.ts'
import { createThings, scene, type Scene } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { until, type Worker } from '../support/worker.ts'

async function prepared(ddl: 'apply' | 'stop'): Promise<Scene> {
  const pg = await postgres(18)
  const [source, target] = [await pg.database('ddl_source'), await pg.database('ddl_target')]
  await createThings(source, 100)
  await sql(source, 'alter table thing add weight real, add price numeric(6,2), add count int')
  return await scene({ source, target, mode: 'hybrid', more: `ddl: ${ddl}` })
}
async function streaming(pipeline: Scene): Promise<Worker> {
  const worker = pipeline.run()
  await until(async () => (/ streaming /.test(worker.printed()) ? [] : ['not live yet']), { seconds: 60, worker })
  return worker
}
const both = async (pipeline: Scene): Promise<readonly string[]> => [
  ...(await definitionDiffers(pipeline.source, pipeline.target)),
  ...(await pipeline.differences()),
]

describe('a change of a table in mid-stream', { ...needs('pg'), concurrency: 2 }, () => {
  it('H26: with ddl: apply each change that can be proved is made at the target, in its place among the rows', async () => {
    await using pipeline = await prepared('apply')
    const worker = await streaming(pipeline)
    const writing = await keepWriting(pipeline.source)
    for (const statement of [
      'alter table thing alter count type bigint, alter weight type float8, add twice int generated always as (id % 1000 * 2) stored',
      'alter table thing add note text',
      `alter table thing add kind varchar(5) not null default 'it''s'`,
      'alter table thing alter price type numeric(9,2)',
      'alter table thing alter kind type varchar(9)',
      'alter table thing rename note to remark',
      `alter table thing alter kind drop not null; insert into thing (id, kind) values (-5, null)`,
      'alter table thing drop column name',
      `begin; insert into thing (id) values (-1); alter table thing add tags text[] default '{a,"b c"}';
       insert into thing (id, tags) values (-2, null); alter table thing rename tags to labels; update thing set labels = '{x}' where id = 1; commit`,
    ]) {
      const before = writing.count()
      await sql(pipeline.source, statement)
      await until(async () => (writing.count() > before + 3 ? [] : ['nothing is written']), { seconds: 30, worker })
      // A column that is added behind a rewrite which the stream has not reached yet is left to an operator: the rewrite may have filled it.
      if (/stored/.test(statement))
        await until(async () => await definitionDiffers(pipeline.source, pipeline.target), { seconds: 30, worker })
    }
    await writing.stop()
    // No row tells of it.
    await sql(pipeline.source, `update thing set kind = 'k' where kind is null`)
    await sql(pipeline.source, 'alter table thing alter kind set not null')
    await until(async () => await both(pipeline), { seconds: 60, worker })
    assert.equal((await worker.stop()).code, 0)
  })

  it('H26: with ddl: stop it ends with the statements for the target, all rows before applied, and goes on once they were run', async () => {
    await using pipeline = await prepared('stop')
    const worker = await streaming(pipeline)
    await sql(
      pipeline.source,
      `begin; insert into thing (id) values (5001); alter table thing add size int default 7, drop column weight;
       insert into thing (id, size) values (5002, 9); commit; update thing set size = 1 where id = 1`,
    )
    const end = await worker.ended
    assert.equal(end.code, 1, end.stderr)
    assert.match(end.stderr, /^✗ TABLE_CHANGED /m)
    for (const word of ['object', 'observed', 'needed', 'effect', 'next'])
      assert.match(end.stderr, new RegExp(`^ {4}${word} +\\S`, 'm'))
    assert.match(end.stderr, /column weight was dropped; column size integer was added/)
    const rows = await sql(pipeline.target, 'select id, name from thing where id > 5000 or id = 1 order by id')
    assert.deepEqual(rows, [
      { id: 1, name: 'thing 1' },
      { id: 5001, name: null },
    ])
    const statements = end.stderr.match(/ALTER TABLE .*;$/gm) ?? []
    assert.equal(statements.length, 3, end.stderr)
    // Half of it is not enough, and is not asked for again.
    await sql(pipeline.target, statements[0] ?? '')
    const again = await pipeline.command(['run'])
    assert.equal(again.code, 1, again.stderr)
    assert.match(again.stderr, /observed +at the source column size integer was added$/m)
    for (const statement of statements.slice(1)) await sql(pipeline.target, statement)
    const next = await streaming(pipeline)
    await until(async () => await both(pipeline), { seconds: 60, worker: next })
    assert.equal((await next.stop()).code, 0)
  })

  it('H26: while it is stopped, check sends to run, whose statements lead to the same rows', async () => {
    await using pipeline = await prepared('stop')
    const worker = await streaming(pipeline)
    assert.equal((await worker.stop()).code, 0)
    await sql(pipeline.source, 'insert into thing (id) values (5001)')
    await sql(pipeline.source, 'alter table thing add size int default 7')
    await sql(
      pipeline.source,
      'insert into thing (id, size) values (5002, 9), (5003, null); insert into thing (id) values (5004)',
    )
    const checked = await pipeline.command(['check', '--json'])
    assert.equal(checked.code, 0, checked.stdout + checked.stderr)
    const { findings } = JSON.parse(checked.stdout) as {
      findings: { level: string; observed: string; remedy?: string }[]
    }
    const about = findings.filter(({ observed }) => /public\.thing\.size/.test(observed))
    assert.equal(about.length, 1, checked.stdout)
    assert.equal(about[0]?.level, 'warning')
    assert.match(about[0]?.remedy ?? '', /^Run the pipeline/)
    assert.doesNotMatch(checked.stdout, /ADD COLUMN/)
    const end = await pipeline.command(['run'])
    assert.equal(end.code, 1, end.stderr)
    const statements = end.stderr.match(/ALTER TABLE .*;$/gm) ?? []
    assert.equal(statements.length, 2, end.stderr)
    for (const statement of statements) await sql(pipeline.target, statement)
    const next = await streaming(pipeline)
    await until(async () => await both(pipeline), { seconds: 60, worker: next })
    assert.equal((await next.stop()).code, 0)
    const after = await pipeline.command(['check'])
    assert.equal(after.code, 0, after.stdout + after.stderr)
    assert.doesNotMatch(after.stdout, /Run the pipeline/)
  })
})
