import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { scene, untilEqual } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import {
  changeTypeTable,
  compareTypeTable,
  createTypes,
  createTypeTable,
  fillTypeTable,
  typeColumns,
} from '../support/type-tables.ts'
import { until } from '../support/worker.ts'

describe('a value of every type', { ...needs('pg'), timeout: 120_000 }, () => {
  it('arrives as it was, copied and streamed, by key and by the whole old row', async () => {
    const server = await postgres(18)
    const [source, target] = await Promise.all([server.database('types_source'), server.database('types_target')])
    await Promise.all([createTypes(source), createTypes(target)])
    const columns = await typeColumns(source)
    for (const key of [true, false]) {
      const table = key ? 'keyed' : 'keyless'
      for (const url of [source, target]) await createTypeTable(url, table, columns, key)
      await fillTypeTable(source, table, columns)
    }
    await using pipeline = await scene({ source, target, mode: 'hybrid', include: 'public.key*' })
    const worker = pipeline.run()
    const tables = ['keyed', 'keyless']
    await untilEqual(pipeline, worker, 40, tables)
    for (const table of tables) await changeTypeTable(source, table, columns)
    const differences = async (): Promise<readonly string[]> => {
      const found = await Promise.all(tables.map((table) => compareTypeTable(source, target, table, columns)))
      return found.flat()
    }
    await until(differences, { seconds: 60, worker })
    const end = await worker.stop()
    assert.equal(end.code, 0, end.stderr)
  })
})
