import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { sql } from '../support/postgres.ts'
import { oddNames } from '../support/random-tables.ts'
import { scene, untilEqual } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { connected } from '../support/shop.ts'
import { quoted } from '../support/type-tables.ts'
import { until } from '../support/worker.ts'

const types = ['int', 'boolean', 'smallint', 'text', '"char"', 'numeric', 'date'] as const
const values: Readonly<Record<(typeof types)[number], string>> = {
  int: '$i',
  boolean: '$i % 2 = 0',
  smallint: '-$i',
  text: `'t' || $i`,
  '"char"': `'c'`,
  numeric: '$i / 4.0',
  date: `date '2000-01-01' + $i`,
}
/** A thousand that stay, among sixty that go before there is a row; every name that has a meaning elsewhere, and many as long as can be. */
const columns = Array.from({ length: 1060 }, (_, i) => ({
  name:
    oddNames[i] ??
    (i % 3 === 0 ? `${'ü'.repeat(29)}${`${i}`.padStart(5, '_')}` : `c${i}`.padEnd(i % 3 === 1 ? 63 : 5, '_')),
  type: types[i % types.length] ?? 'int',
  gone: i % 17 === 5 && i / 17 < 60,
}))
const kept = columns.filter(({ gone }) => !gone)

describe('tables of a thousand columns', needs('pg'), () => {
  it('with gaps and names of any kind are copied and streamed, with a key and without', async () => {
    const pg = await postgres(18)
    const [source, target] = [await pg.database('wide_source'), await pg.database('wide_target')]
    assert.ok(kept.length >= 1000)
    for (const table of ['keyed', 'keyless']) {
      const defined = columns.map(({ name, type }) => `${quoted(name)} ${type}`).join(', ')
      const gone = columns.flatMap(({ name, gone }) => (gone ? [`drop column ${quoted(name)}`] : [])).join(', ')
      const key = table === 'keyed' ? ' primary key' : ''
      await sql(source, `create table ${table} ("id of it" int${key}, ${defined}); alter table ${table} ${gone}`)
    }
    await sql(source, 'alter table keyless replica identity full')
    const names = ['id of it', ...kept.map(({ name }) => name)].map(quoted).join(', ')
    const row = (id: string, i: string): string =>
      `select ${[id, ...kept.map(({ type }) => values[type].replaceAll('$i', i))].join(', ')}`
    await using client = await connected(source)
    const tables = ['keyed', 'keyless']
    const each = async (text: (table: string) => string): Promise<void> => {
      for (const table of tables) await client.query(text(table))
    }
    await each((table) => `insert into ${table} (${names}) ${row('i', 'i')} from generate_series(1, 30) i`)
    await each((table) => `insert into ${table} ("id of it") values (31)`)
    await using pipeline = await scene({ source, target, mode: 'hybrid' })
    const worker = pipeline.run()
    await untilEqual(pipeline, worker, 100, tables)
    await until(async () => (/ streaming /.test(worker.printed()) ? [] : ['not live yet']), { seconds: 60, worker })
    await each((table) => `insert into ${table} (${names}) ${row('100 + i', 'i')} from generate_series(1, 5) i`)
    await each(
      (table) => `update ${table} set "__proto__" = 7, ${quoted(kept.at(-1)?.name ?? '')} = null where "id of it" < 4`,
    )
    await each((table) => `update ${table} set (${names}) = (${row('204', '9')}) where "id of it" = 104`)
    await each((table) => `delete from ${table} where "id of it" in (5, 31)`)
    await untilEqual(pipeline, worker, 100, tables)
    const rows = await sql(target, `select count(*)::int as n, count("__proto__")::int as proto from keyed`)
    assert.deepEqual(rows, [{ n: 34, proto: 34 }])
    const [there] = await sql(
      target,
      `select count(*)::int as n from pg_attribute where attrelid = 'keyed'::regclass and attnum > 0 and not attisdropped`,
    )
    assert.equal(there?.['n'], kept.length + 1)
    const end = await worker.stop()
    assert.equal(end.code, 0, end.stderr)
  })
})
