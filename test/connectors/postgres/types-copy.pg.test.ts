import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import { parse } from '../../../connectors/postgres/config.ts'
import { openReader } from '../../../connectors/postgres/reader.ts'
import { readCatalog, tableSchema, type CatalogTable } from '../../../connectors/postgres/schema.ts'
import { openSink } from '../../../connectors/postgres/sink.ts'
import type { Sink, TableReader } from '../../../src/connector.ts'
import type { ChunkData } from '../../../src/rows.ts'
import { silent } from '../../../src/logger.ts'
import type { Chunk, Position } from '../../../src/model.ts'
import { sql } from '../../support/postgres.ts'
import { needs, postgres } from '../../support/servers.ts'
import { connected } from '../../support/shop.ts'
import {
  compareTypeTable,
  createTypes,
  createTypeTable,
  fillTypeTable,
  typeColumns,
  type TypeColumn,
} from '../../support/type-tables.ts'
import { never } from './sink-server.ts'

const snapshot = '1' as Position

describe('a value of every type is copied as it was', needs('pg'), () => {
  let source = ''
  let target = ''
  let columns: readonly TypeColumn[] = []
  let sink: Sink
  before(async () => {
    const server = await postgres(18)
    ;[source, target] = await Promise.all([server.database('types_source'), server.database('types_target')])
    await Promise.all([createTypes(source), createTypes(target)])
    columns = await typeColumns(source)
    await createTypeTable(source, 'every', columns)
    await fillTypeTable(source, 'every', columns)
    await createTypeTable(target, 'every', columns)
    sink = await openSink(parse({ url: target }), { pipeline: 'p', dir: '/nowhere', log: silent }, never)
    await sink.prepare([], 'before', undefined, never)
  })
  after(async () => await sink[Symbol.asyncDispose]())

  it('by binary frames', async () => {
    const { columns: found } = await catalogOf('every')
    const safe = new Set(found.filter(({ binary }) => binary).map(({ name }) => name))
    const binary = columns
      .filter(({ name }) => safe.has(name))
      .map((column) => ({ ...column, delimiter: safe.has(`${column.name}[]`) ? column.delimiter : undefined }))
    assert.ok(binary.length > 60, `${binary.length} types are copied in binary`)
    await createTypeTable(target, 'in_binary', binary)
    await createTypeTable(source, 'in_binary', binary)
    await fillTypeTable(source, 'in_binary', binary)
    await copy('in_binary', 'binary')
    assert.deepEqual(await compareTypeTable(source, target, 'in_binary', binary), [])
  })
  for (const way of ['text', 'rows'] as const)
    it(way === 'text' ? 'by text frames' : 'by row images', async () => {
      await sql(target, 'truncate every')
      await copy('every', way)
      assert.deepEqual(await compareTypeTable(source, target, 'every', columns), [])
    })

  async function catalogOf(name: string): Promise<CatalogTable> {
    await using client = await connected(source)
    const [table] = await readCatalog(client, (id) => id.name === name)
    if (!table) throw new Error(`no table ${name}`)
    return table
  }

  async function copy(name: string, way: 'binary' | 'text' | 'rows'): Promise<void> {
    const schema = tableSchema(await catalogOf(name), 1)
    await using reader = await openReader(parse({ url: source }), 'now', 'p', never)
    await sink.setCopies([{ table: schema.table, partitions: [], snapshot, live: false }], 1, never)
    await using lane = await sink.lane(never)
    const chunk: Chunk = { table: schema.table, id: `${name} ${way}`, snapshot, replace: false, estimatedRows: 0 }
    const data = way === 'rows' ? rowsOf() : framesOf(reader, way)
    assert.ok(await lane.load(schema, chunk, data, 1, never))

    function rowsOf(): ChunkData {
      return { kind: 'rows', batches: reader.rows(schema, chunk, never) }
    }
    function framesOf(from: TableReader, start: string): ChunkData {
      const format = from.formats?.(schema).find((offered) => offered.startsWith(start))
      const frames = format && from.frames?.(schema, chunk, format, never)
      assert.ok(format !== undefined && frames && lane.formats?.(schema).includes(format), `no ${start} on both sides`)
      return { kind: 'frames', format, frames }
    }
  }
})
