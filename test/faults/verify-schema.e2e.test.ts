import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { sql } from '../support/postgres.ts'
import { assertCompletes, scene, untilEqual, type Scene } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { until } from '../support/worker.ts'

type Told = {
  readonly verdict: string
  readonly tables: readonly unknown[]
  readonly shapes: {
    readonly verdict: string
    readonly why: string | null
    readonly found: readonly { readonly severity: string; readonly kind: string; readonly name: string }[]
  } | null
}

async function verified(pipeline: Scene, ...args: readonly string[]): Promise<readonly unknown[]> {
  const { code, stdout, stderr } = await pipeline.command(['verify', '--json', ...args])
  try {
    const { verdict, shapes } = JSON.parse(stdout) as Told
    const differences = (shapes?.found ?? []).flatMap(({ severity, kind, name }) =>
      severity === 'note' ? [] : `${severity} ${kind} ${name}`,
    )
    return [code, verdict, shapes?.verdict, ...differences]
  } catch (error) {
    throw new Error(`ended with ${code}:\n${stdout}${stderr}`, { cause: error })
  }
}

const tables = `
  create table thing (id serial primary key, name text not null default '' check (length(name) < 100));
  create table part (id int primary key, thing int references thing, size int);
  create index part_size on part (size);
  insert into thing (name) select 'thing ' || i from generate_series(1, 100) i;
  insert into part select i, i, i from generate_series(1, 100) i;
`

describe('crossfade verify of what tables are made of', { ...needs('pg', 'pg15'), concurrency: 2 }, () => {
  it('H20: tells what differs and what it means, waits for a change that is on its way, and does not know without a process', async () => {
    await using pipeline = await scene({
      source: await (await postgres(15)).database('shape_source'),
      target: await (await postgres(18)).database('shape_target'),
      mode: 'hybrid',
      more: 'ddl: apply',
    })
    await sql(pipeline.source, tables)
    const worker = pipeline.run()
    await untilEqual(pipeline, worker, 80, ['thing', 'part'])
    await until(
      async () =>
        (await pipeline.command(['status', '--json'])).stdout.includes('"streaming"') ? [] : ['not streaming'],
      { seconds: 40, worker },
    )
    assert.deepEqual(await verified(pipeline), [0, 'equal', 'equal'])
    await sql(
      pipeline.target,
      `drop index part_size; alter table part drop constraint part_thing_fkey; alter table thing alter column name drop default`,
    )
    const broken = ['blocker foreign key part_thing_fkey', 'blocker column name', 'warning index part_size']
    assert.deepEqual(await verified(pipeline), [1, 'different', 'different', ...broken])
    assert.deepEqual(await verified(pipeline, '--only', 'schema'), [1, 'different', 'different', ...broken])
    assert.deepEqual(await verified(pipeline, '--only', 'data'), [0, 'equal', undefined])
    const told = JSON.parse((await pipeline.command(['verify', 'report', '--json'])).stdout) as Told
    assert.deepEqual([told.verdict, told.shapes], ['equal', null])
    const text = await pipeline.command(['verify', '--only', 'schema'])
    assert.match(
      text.stdout,
      /rows were not compared[^]*✗ foreign key part_thing_fkey of public\.part is not at the target/,
    )
    assert.match((await pipeline.command(['verify', '--only', 'data'])).stdout, /definitions were not compared/)
    await sql(
      pipeline.target,
      `alter table part add constraint part_thing_fkey foreign key (thing) references thing; alter table thing alter column name set default ''`,
    )
    await sql(pipeline.source, 'alter table part add column weight int')
    assert.deepEqual(await verified(pipeline, '--only', 'schema'), [0, 'equal', 'equal', 'warning index part_size'])
    assert.equal((await worker.stop()).code, 0)
    await sql(pipeline.source, 'alter table part add column later int')
    assert.deepEqual(await verified(pipeline, '--only', 'schema'), [
      3,
      'unknown',
      'unknown',
      'unknown column later',
      'warning index part_size',
    ])
  })

  it('after a complete copy sequences count too', async () => {
    await using pipeline = await scene({
      source: await (await postgres(15)).database('shape_source'),
      target: await (await postgres(18)).database('shape_target'),
    })
    await sql(pipeline.source, tables)
    await assertCompletes(pipeline, ['thing', 'part'])
    assert.deepEqual(await verified(pipeline), [0, 'equal', 'equal'])
    await sql(pipeline.source, `select nextval('thing_id_seq')`)
    assert.deepEqual(await verified(pipeline), [1, 'different', 'different', 'blocker sequence public.thing_id_seq'])
  })
})
