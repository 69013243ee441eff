import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { TableSchema } from '../../../src/model.ts'
import { fingerprint, valueSchema } from '../../../src/avro/envelope.ts'
import { schemaReader, schemaWriter, type SchemaRecord } from '../../../src/avro/schema-ids.ts'
import { batchBuilder } from '../../../src/change-log/record-batch.ts'
import { memoryLog, type MemoryLog } from '../../support/memory-log.ts'

const topic = 'shop.schemas'
const { signal } = new AbortController()

function table(name: string, key: readonly number[] = [0], version = 1): TableSchema {
  return {
    table: { schema: 'public', name },
    version,
    columns: [{ name: 'id', type: 'integer', form: 'int32', nullable: false }],
    key,
    before: 'row',
    shape: 'columns',
    pinned: key.length === 0,
  }
}
async function append(log: MemoryLog, records: readonly SchemaRecord[]): Promise<void> {
  const batch = batchBuilder({ compress: false })
  for (const { key, value } of records) {
    const bytes = Buffer.concat([key, value])
    batch.add(bytes, 0, key.length, key.length, bytes.length, 0)
  }
  await log.append([batch.finish(topic, 0)], signal)
}
async function openLog(): Promise<MemoryLog> {
  const log = memoryLog()
  await log.open([{ name: topic, partitions: 1, cleanup: 'compact' }], signal)
  return log
}
const idOf = (schema: TableSchema): number => fingerprint(valueSchema(schema))

test('a schema is announced once, before its first record, with those of control records', () => {
  const writer = schemaWriter()
  const orders = table('orders')
  const subjects = (records: readonly SchemaRecord[]): unknown[] =>
    records.map(({ value }) => (JSON.parse(Buffer.from(value).toString()) as { subject: unknown }).subject)
  const first = writer.encoder(orders, 'shop.public.orders')
  assert.deepEqual(subjects(first.fresh), [
    'crossfade.control-key',
    'crossfade.control-value',
    'shop.public.orders-key',
    'shop.public.orders-value',
  ])
  const again = writer.encoder(orders)
  assert.equal(again.encoder, first.encoder)
  assert.deepEqual(again.fresh, [])
  assert.deepEqual(writer.encoder(structuredClone(orders)).fresh, [])
  assert.deepEqual(subjects(writer.encoder(table('log', [])).fresh), ['public.log-value'])
  assert.deepEqual(subjects(writer.encoder(table('orders', [0], 2), 't').fresh), ['t-value'])
})

test('a reader finds schemas that are there, that come later, and asks in vain only so long', async () => {
  await using log = await openLog()
  const writer = schemaWriter()
  const [orders, items, never] = [table('orders'), table('items'), table('never')]
  await append(log, writer.encoder(orders).fresh)
  const reader = schemaReader(log, topic, { wait: 300 })
  assert.equal(reader.decoder(idOf(orders)), undefined)
  await Promise.all([reader.load(idOf(orders), signal), reader.load(idOf(orders), signal)])
  assert.deepEqual(reader.decoder(idOf(orders))?.schema, orders)
  // it goes on where it was, so what retention or compaction took since is not missed
  log.truncate({ topic, partition: 0 }, 1)
  const late = reader.load(idOf(items), signal)
  await append(log, writer.encoder(items).fresh)
  await late
  assert.deepEqual(reader.decoder(idOf(items))?.schema, items)
  await assert.rejects(reader.load(idOf(never), signal), { code: 'LOG_GAP' })
})

test('records that are no schemas, or under an id not theirs, are refused', async () => {
  const good = JSON.stringify(valueSchema(table('orders')))
  for (const value of [
    '{',
    '{}',
    JSON.stringify({ id: 5, subject: 's', schema: good }),
    JSON.stringify({ id: 5, subject: 's', schema: '"string"' }),
  ]) {
    await using log = await openLog()
    await append(log, [{ key: Buffer.from('{"id":5}'), value: Buffer.from(value) }])
    await assert.rejects(schemaReader(log, topic, { wait: 300 }).load(5, signal), { code: 'LOG_DAMAGED' })
  }
})

test('what others wrote to the topic is passed over', async () => {
  await using log = await openLog()
  const orders = table('orders')
  await append(log, [{ key: Buffer.from('theirs'), value: Buffer.from('{') }])
  await append(log, schemaWriter().encoder(orders).fresh)
  const reader = schemaReader(log, topic)
  await reader.load(idOf(orders), signal)
  assert.deepEqual(reader.decoder(idOf(orders))?.schema, orders)
})

test('loading ends when its signal does', async () => {
  await using log = await openLog()
  const stop = new AbortController()
  const loading = schemaReader(log, topic).load(1, stop.signal)
  const orders = table('orders')
  const other = schemaReader(log, topic)
  const first = other.load(idOf(orders), stop.signal)
  const second = other.load(idOf(orders), signal)
  stop.abort(new Error('stopped'))
  await assert.rejects(loading)
  await assert.rejects(first)
  await append(log, schemaWriter().encoder(orders).fresh)
  await second
})

test('two schemas with one fingerprint are refused at both ends', async () => {
  const [first, second] = [table('t21584'), table('t35401')]
  assert.equal(idOf(first), idOf(second), 'found by search: find two others if the wire form has changed')
  const writer = schemaWriter()
  writer.encoder(first)
  assert.throws(() => writer.encoder(second), { code: 'UNSUPPORTED' })
  await using log = await openLog()
  await append(log, [...schemaWriter().encoder(first).fresh, ...schemaWriter().encoder(second).fresh])
  await assert.rejects(schemaReader(log, topic).load(1, signal), { code: 'UNSUPPORTED' })
})
