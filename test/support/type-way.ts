import assert from 'node:assert/strict'
import { isDeepStrictEqual } from 'node:util'
import { sql, type PostgresVersion } from './postgres.ts'
import { scene } from './scene.ts'
import { postgres } from './servers.ts'
import {
  changeTypeTable,
  compareTypeTable,
  createTypes,
  createTypeTable,
  fillTypeTable,
  typeColumns,
} from './type-tables.ts'
import { until } from './worker.ts'

/** Copies and streams every value of every type from this version to 18, in a table with a key and in one without, and compares both ends by column. */
export async function carryEveryType(from: PostgresVersion): Promise<void> {
  const source = await (await postgres(from)).database('types_source')
  const target = await (await postgres(18)).database('types_target')
  await Promise.all([createTypes(source), createTypes(target)])
  const columns = await typeColumns(source)
  for (const key of [true, false]) {
    const table = key ? 'keyed' : 'keyless'
    for (const url of [source, target]) await createTypeTable(url, table, columns, key)
    await fillTypeTable(source, table, columns)
  }
  // A row of it holds nothing, and cannot be sent.
  await sql(source, 'create table key_of_nothing (); insert into key_of_nothing default values')
  await using pipeline = await scene({ source, target, mode: 'hybrid', include: 'public.key*' })
  const worker = pipeline.run()
  const tables = ['keyed', 'keyless']
  // What is cheap to read is asked for again and again, all values once.
  const progress = tables
    .map(
      (table) =>
        `select '${table}' as name, md5(string_agg(id || coalesce(bool::text, '?'), ',' order by id)) as rows from ${table}`,
    )
    .join(' union all ')
  const differences = async (): Promise<readonly string[]> => {
    const [wanted, found] = await Promise.all([sql(source, progress), sql(target, progress)])
    if (!isDeepStrictEqual(wanted, found)) return ['rows are on their way']
    return (await Promise.all(tables.map((table) => compareTypeTable(source, target, table, columns)))).flat()
  }
  await until(differences, { seconds: 120, worker })
  for (const table of tables) await changeTypeTable(source, table, columns)
  await until(differences, { seconds: 120, worker })
  const end = await worker.stop()
  assert.equal(end.code, 0, end.stderr)
  assert.match(end.stderr, /key_of_nothing is left out: .*not copied/)
}
