import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'node:test'
import { applyLane } from '../../../src/apply/apply.ts'
import { createBatcher } from '../../../src/apply/batcher.ts'
import { schemaReader } from '../../../src/avro/schema-ids.ts'
import { capture } from '../../../src/capture/capture.ts'
import { createPublisher } from '../../../src/capture/publisher.ts'
import { controlTopic, schemasTopic, topicName } from '../../../src/change-log/topics.ts'

import { origin, partitionName, tableName, heartbeatPrefix } from '../../../src/model.ts'
import { memoryLog } from '../../support/memory-log.ts'
import { memorySink } from '../../support/memory-sink.ts'
import { memorySource } from '../../support/memory-source.ts'
import { positionOf, tableOf } from './rows-for-tests.ts'

const signal = AbortSignal.timeout(30_000)
// Text only: the sink in memory compares cells as they are encoded.
const columns = tableOf('orders').columns.map((column) => ({ ...column, form: 'text' as const }))
const orders = tableOf('orders', { columns })
const items = tableOf('items', { columns })
const routes = [orders, items].map(({ table }) => {
  return { table, topic: topicName('shop', table), partitions: 3, pinned: false }
})
const partitions = routes.flatMap(({ topic }) => [0, 1, 2].map((partition) => ({ topic, partition })))

const byText = (a: readonly unknown[], b: readonly unknown[]): number => (String(a) < String(b) ? -1 : 1)

test('from one database in memory to another, over two lanes', async () => {
  const database = memorySource([orders, items])
  const sink = memorySink()
  const log = memoryLog()
  await log.open(
    routes.map(({ topic }) => ({ name: topic, partitions: 3, cleanup: 'delete' })),
    signal,
  )
  await log.open([{ name: controlTopic('shop'), partitions: 1, cleanup: 'delete' }], signal)
  await log.open([{ name: schemasTopic('shop'), partitions: 1, cleanup: 'compact' }], signal)
  await using source = database.open()
  await using snapshot = await source.retain([orders, items], signal)
  await sink.prepare([orders, items], 'before', undefined, signal)
  for (const schema of [orders, items]) {
    const own = partitions.filter(({ topic }) => topic === topicName('shop', schema.table))
    const copy = { table: schema.table, partitions: own, snapshot: snapshot?.position ?? positionOf(0) }
    await sink.setCopies([{ ...copy, live: true }], 1, signal)
  }
  const stop = new AbortController()
  const publisher = createPublisher({
    pipeline: 'shop',
    epoch: 1,
    route: (id) => routes.find(({ table }) => tableName(table) === tableName(id)),
    partitions,
    ends: [],
    clock: () => 0,
    limits: { roundBytes: 1e6, batchBytes: 1e6 },
  })
  const running = [
    capture(source, log, publisher, { after: origin, published: origin, unread: [] }, { signal }, stop.signal),
  ]
  for (const rest of [0, 1]) {
    const mine = partitions.filter((_, i) => i % 2 === rest)
    const lane = await sink.lane(signal)
    // A handle of its own: what one lane's pull lent is not overwritten by another's.
    const own = memoryLog({ data: log.data })
    const schemas = schemaReader(own, schemasTopic('shop'))
    const checkpoints = await lane.claim(mine, 1, signal)
    const batcher = createBatcher({ checkpoints, schemas, limits: { batchRows: 50, batchBytes: 1e6 } })
    running.push(applyLane(own, lane, batcher, schemas, 20, stop.signal, signal))
  }
  for (let n = 0; n < 60; n++) {
    database.commit(
      { kind: 'insert', table: orders, row: [String(n), `order ${n}`, null, String(n)] },
      { kind: 'insert', table: items, row: [String(n), 'item', 'large', '7'] },
    )
    if (n % 7 === 3) {
      const row = [String(n + 1000), 'moved', undefined, String(n)]
      database.commit({ kind: 'update', table: items, key: [String(n)], row })
    }
    if (n % 5 === 4)
      database.commit({ kind: 'update', table: orders, key: [String(n)], row: [String(n), undefined, 'b', '1'] })
    if (n % 11 === 5) database.commit({ kind: 'delete', table: orders, key: [String(n - 1)] })
    if (n === 30) database.commit({ kind: 'truncate', tables: [items] })
    if (n % 10 === 0) await source.emit(heartbeatPrefix, Buffer.of(), signal)
  }
  await source.emit(heartbeatPrefix, Buffer.of(), signal)
  const content = (): unknown => [orders, items].map(({ table }) => sink.rows(table).toSorted(byText))
  const expected = [orders, items].map(({ table }) =>
    database
      .rows(table)
      .map((row) => [...row])
      .toSorted(byText),
  )
  for (let same = false; !same;) {
    await Promise.race([sleep(10, undefined, { signal }), ...running])
    const reached = new Map((await sink.checkpoints(signal)).map((at) => [partitionName(at), at.offset]))
    const ends = await log.ends(partitions, signal)
    same = ends.every((end) => reached.get(partitionName(end)) === end.offset) && database.acknowledged !== origin
    same &&= JSON.stringify(content()) === JSON.stringify(expected) || signal.aborted
  }
  stop.abort()
  await Promise.all(running)
  assert.deepEqual(content(), expected)
  assert.ok(
    [...sink.effects.values()].every((times) => times === 1),
    'each barrier is done once',
  )
  assert.ok(sink.effects.size > 5)
})
