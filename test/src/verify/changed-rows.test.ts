import assert from 'node:assert/strict'
import { test } from 'node:test'
import { schemaReader } from '../../../src/avro/schema-ids.ts'
import { createPublisher, type Publisher } from '../../../src/capture/publisher.ts'
import { tableName, type TableSchema } from '../../../src/model.ts'
import { Op } from '../../../src/rows.ts'
import { changedRows, type ChangedRows, type Round } from '../../../src/verify/changed-rows.ts'
import { memoryLog, type MemoryLog } from '../../support/memory-log.ts'
import { batchOf, positionOf, tableOf, type Change } from '../apply/rows-for-tests.ts'

const orders = tableOf('orders')
const pairs = tableOf('pairs', { key: [3, 1] })
const notes = tableOf('notes', { key: [], before: 'row' })
const tables = [orders, pairs, notes]
const topicOf = ({ table }: TableSchema): string => `shop.public.${table.name}`
const partitions = tables.map((schema) => ({ topic: topicOf(schema), partition: 0 }))
const signal = AbortSignal.timeout(30_000)

async function bench(): Promise<{
  log: MemoryLog
  send: (...changes: readonly Change[]) => Promise<void>
  publisher: Publisher
  flush: () => Promise<void>
}> {
  const log = memoryLog()
  const topics = [...partitions.map(({ topic }) => topic), 'shop.control']
  await log.open(
    topics.map((name) => ({ name, partitions: 1, cleanup: 'delete' })),
    signal,
  )
  await log.open([{ name: 'shop.schemas', partitions: 1, cleanup: 'compact' }], signal)
  const routes = new Map(
    tables.map((schema) => [
      tableName(schema.table),
      { table: schema.table, topic: topicOf(schema), partitions: 1, pinned: true },
    ]),
  )
  const publisher = createPublisher({
    pipeline: 'shop',
    epoch: 1,
    route: (table) => routes.get(tableName(table)),
    partitions,
    ends: [],
    clock: () => 0,
    limits: { roundBytes: 1e6, batchBytes: 1e6 },
  })
  const flush = async (): Promise<void> => {
    while (!publisher.idle) publisher.landed(await log.append(publisher.take().round, signal))
  }
  let n = 0
  const send = async (...changes: readonly Change[]): Promise<void> => {
    publisher.add(batchOf([{ position: positionOf(16 * ++n), changes }]))
    await flush()
  }
  return { log, send, publisher, flush }
}
const reading = (log: MemoryLog): ChangedRows =>
  changedRows(
    log,
    schemaReader(log, 'shop.schemas'),
    new Map(tables.map((schema) => [topicOf(schema), schema])),
    partitions.map((at) => ({ ...at, offset: 0 })),
  )
const told = ({ rows, passedOver }: Round): unknown => ({
  rows: [...rows].flatMap(([table, suspects]) => suspects.map(({ key }) => `${table} ${key.join(',')}`)).toSorted(),
  passedOver: Object.fromEntries(passedOver),
})
const insert = (schema: TableSchema, id: string, n = '1'): Change => ({
  op: Op.insert,
  schema,
  row: [id, 'a', null, n],
})

test('every key that changed comes once, whatever was done to it', async () => {
  const { log, send } = await bench()
  const rows = reading(log)
  await send(insert(orders, '1'), insert(orders, '2'), insert(pairs, '7', '-5'))
  await send(
    { op: Op.update, schema: orders, row: ['1', 'b', undefined, '2'] },
    { op: Op.delete, schema: orders, old: ['9223372036854775807', undefined, undefined, undefined] },
    { op: Op.update, schema: orders, old: ['2', undefined, undefined, undefined], row: ['3', 'b', 'c', '2'] },
  )
  const round = await rows.pull(100, 0, signal)
  assert.equal(round.count, 5)
  assert.deepEqual(told(round), {
    rows: [
      'public.orders 1',
      'public.orders 2',
      'public.orders 3',
      'public.orders 9223372036854775807',
      'public.pairs -5,a',
    ],
    passedOver: {},
  })
})

test('a round is the same again until it is accepted, and holds no more than was asked for', async () => {
  const { log, send } = await bench()
  const rows = reading(log)
  await send(...Array.from({ length: 10 }, (_, i) => insert(orders, String(i))))
  const first = await rows.pull(4, 0, signal)
  assert.deepEqual(told(await rows.pull(4, 0, signal)), told(first))
  assert.equal(first.count, 4)
  const seen: unknown[] = []
  for (let left = 10; left > 0;) {
    const round = await rows.pull(4, 0, signal)
    seen.push(...(round.rows.get('public.orders') ?? []).map(({ key }) => key[0]))
    left -= round.count
    rows.accept(round)
  }
  assert.deepEqual(seen, ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9'])
  assert.equal((await rows.pull(4, 0, signal)).count, 0)
})

test('changes without a key, of another key, and of whole tables are counted, not forgotten', async () => {
  const { log, send, publisher, flush } = await bench()
  const rows = reading(log)
  await send(insert(notes, '1'), insert(notes, '2'))
  await send(insert({ ...orders, version: 2, key: [1] }, '1'))
  publisher.add({
    kind: 'effect',
    effect: { kind: 'truncate', tables: [pairs.table], cascade: false, restartCounters: false },
    mark: { position: positionOf(1000), seq: 0 },
    committedAt: 0,
  })
  await flush()
  assert.deepEqual(told(await rows.pull(100, 0, signal)), {
    rows: [],
    passedOver: { 'public.notes': 2, 'public.orders': 1, 'public.pairs': 1 },
  })
})
