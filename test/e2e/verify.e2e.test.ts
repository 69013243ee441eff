import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { sql } from '../support/postgres.ts'
import { scene, untilEqual, type Scene } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { until } from '../support/worker.ts'

type Report = {
  readonly verdict: string
  readonly why: string | null
  readonly tables: readonly { readonly table: string; readonly verdict: string; readonly why: string | null }[]
  readonly differences: readonly {
    readonly table: string
    readonly what: string
    readonly key: readonly (string | null)[]
    readonly columns: readonly {
      readonly name: string
      readonly source?: string | null
      readonly target?: string | null
    }[]
    readonly copies?: readonly [number, number]
  }[]
}

async function verified(
  pipeline: Scene,
  args: readonly string[] = [],
): Promise<{ readonly code: number | null; readonly report: Report }> {
  const { code, stdout, stderr } = await pipeline.command(['verify', '--json', ...args])
  try {
    return { code, report: JSON.parse(stdout) as Report }
  } catch (error) {
    throw new Error(`ended with ${code}:\n${stdout}${stderr}`, { cause: error })
  }
}

const tables = `
  create collation if not exists blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
  create type mood as enum ('sad', 'happy');
  create table item (id bigint primary key, name text, price numeric, ratio float8, note json, facts jsonb, at timestamptz, mood mood, list int[], code text collate blind);
  insert into item select i, 'item ' || i, i * 1.10, i / 7.0, '{"a": 1}', '{"n": 1.0}', now(), 'sad', array[i, 2], 'Code' || i from generate_series(1, 3000) i;
  create table named (name text primary key, value int);
  insert into named select 'Name-' || i, i from generate_series(1, 2000) i;
  create table loose (a int, b text);
  insert into loose select i % 50, 'b' || i % 20 from generate_series(1, 1000) i;
  alter table loose replica identity full;
  create table priced (price numeric primary key, note text);
  insert into priced select i + 0.5, 'note' from generate_series(1, 100) i;
  create table coded (id int primary key, code text unique);
  insert into coded select i, 'c' || i from generate_series(1, 250) i;
`

/** What is done to the target, and what a verification then has to say. */
const corruptions: readonly (readonly [statement: string, told: string])[] = [
  ['delete from item where id = 11', 'public.item only source 11 '],
  [`insert into item (id, name) values (999999, 'more')`, 'public.item only target 999999 '],
  ['update item set price = price + 0.01 where id = 12', 'public.item different 12 price'],
  [`update item set name = null where id = 13`, 'public.item different 13 name'],
  [`update item set name = name || ' ' where id = 14`, 'public.item different 14 name'],
  [`update item set price = 16.50 + 0.00000 where id = 15`, 'public.item different 15 price'],
  [`update item set ratio = '-0' where id = 16`, 'public.item different 16 ratio'],
  [`update item set note = '{"a":1}' where id = 17`, 'public.item different 17 note'],
  [`update item set facts = '{"n": 1.00}' where id = 18`, 'public.item different 18 facts'],
  [`update item set at = at + interval '1 microsecond' where id = 19`, 'public.item different 19 at'],
  [`update item set mood = 'happy' where id = 20`, 'public.item different 20 mood'],
  [`update item set list = '[0:1]={21,2}' where id = 21`, 'public.item different 21 list'],
  [`update item set code = lower(code) where id = 22`, 'public.item different 22 code'],
  [
    `update item t set name = (select name from item o where o.id = case t.id when 23 then 24 else 23 end) where id in (23, 24)`,
    'public.item different 23 name\npublic.item different 24 name',
  ],
  [`update item set name = '', list = null where id = 2500`, 'public.item different 2500 name,list'],
  [`delete from named where name = 'Name-7'`, 'public.named only source Name-7 '],
  [`update named set value = 0 where name = 'Name-1999'`, 'public.named different Name-1999 value'],
  [`insert into named values ('name-8', 8)`, 'public.named only target name-8 '],
  [`insert into loose values (7, 'b7')`, 'public.loose copies 7,b7 10:11'],
  [
    `delete from loose where ctid = (select ctid from loose where a = 9 and b = 'b9' limit 1)`,
    'public.loose copies 9,b9 10:9',
  ],
  [`insert into loose values (null, '')`, 'public.loose copies null, 0:1'],
  [`update priced set price = 7.50 where price = 7.5`, 'public.priced different 7.5 price'],
  // No two of them can be mended one after the other, nor all of them in one batch.
  [
    `update coded set code = 'x' || id; update coded set code = 'c' || id % 250 + 1`,
    Array.from({ length: 250 }, (_, i) => `public.coded different ${i + 1} code`).join('\n'),
  ],
]

function told(report: Report): readonly string[] {
  return report.differences.map(({ table, what, key, columns, copies }) => {
    const about = copies === undefined ? columns.map(({ name }) => name).join(',') : copies.join(':')
    return `${table} ${what} ${key.map((part) => part ?? 'null').join(',')} ${about}`
  })
}

describe('crossfade verify', { ...needs('pg'), concurrency: 2 }, () => {
  it('names every row that differs, with its columns, and nothing else; while the pipeline runs and after it', async () => {
    const pg = await postgres(18)
    await using pipeline = await scene({
      source: await pg.database('verify_source'),
      target: await pg.database('verify_target'),
      mode: 'hybrid',
    })
    await sql(pipeline.source, tables)
    const worker = pipeline.run()
    await untilEqual(pipeline, worker, 80, ['item', 'named', 'loose', 'priced', 'coded'])
    await until(
      async () =>
        (await pipeline.command(['status', '--json'])).stdout.includes('"streaming"') ? [] : ['not streaming'],
      { seconds: 40, worker },
    )
    const equal = await verified(pipeline)
    assert.deepEqual(
      [equal.code, equal.report.verdict, equal.report.why],
      [0, 'equal', null],
      JSON.stringify(equal.report),
    )
    for (const [statement] of corruptions) await sql(pipeline.target, statement)
    const found = await verified(pipeline)
    assert.deepEqual([found.code, found.report.verdict], [1, 'different'])
    assert.ok(!JSON.stringify(found.report).includes('item 12'), 'no values unless they are asked for')
    const again = await pipeline.command(['verify', 'report', '--json'])
    assert.deepEqual(
      told(JSON.parse(again.stdout) as Report).toSorted(),
      corruptions.flatMap(([, told]) => told.split('\n')).toSorted(),
    )
    assert.equal(again.code, 1)
    const dry = await pipeline.command(['repair', '--dry-run', '--json'])
    assert.equal(dry.code, 1, dry.stdout + dry.stderr)
    assert.deepEqual(told((await verified(pipeline)).report).toSorted(), told(found.report).toSorted())
    const repaired = await pipeline.command(['repair', '--json'])
    assert.equal(repaired.code, 0, repaired.stdout + repaired.stderr)
    const mended = await verified(pipeline)
    assert.deepEqual([mended.code, mended.report.verdict], [0, 'equal'], JSON.stringify(mended.report))
    assert.deepEqual(await pipeline.differences(['item', 'named', 'loose', 'priced', 'coded']), [])
    assert.equal((await worker.stop()).code, 0)
  })
})
