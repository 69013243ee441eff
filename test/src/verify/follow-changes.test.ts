import assert from 'node:assert/strict'
import { test } from 'node:test'
import { schemaReader } from '../../../src/avro/schema-ids.ts'
import { createPublisher } from '../../../src/capture/publisher.ts'
import type { Checkpoint, Position } from '../../../src/model.ts'
import { Op } from '../../../src/rows.ts'
import { followChanges, type Following } from '../../../src/verify/follow-changes.ts'
import { memoryLog } from '../../support/memory-log.ts'
import { batchOf, positionOf, tableOf } from '../apply/rows-for-tests.ts'

const signal = AbortSignal.timeout(30_000)
const schema = tableOf('orders')
const route = { table: schema.table, topic: 'shop.public.orders', partitions: 1, pinned: false }
const at = { topic: route.topic, partition: 0 }
const registered = [{ schema, route, plan: { generation: 0, ranges: [] } }]

/** One table. `write` and `apply` say what the pipeline does. */
async function bench() {
  const log = memoryLog()
  await log.open([{ name: at.topic, partitions: 1, cleanup: 'delete' }], signal)
  await log.open([{ name: 'shop.schemas', partitions: 1, cleanup: 'compact' }], signal)
  const publisher = createPublisher({
    pipeline: 'shop',
    epoch: 1,
    route: () => route,
    partitions: [at],
    ends: [],
    clock: () => 0,
    limits: { roundBytes: 1e6, batchBytes: 1e6 },
  })
  let n = 0
  let applied = 0
  const position = (): Position => positionOf(16 * n + 1)
  const mark = { position: '' as Position, seq: 0 }
  const checkpoint = (): Checkpoint => ({
    ...at,
    offset: applied,
    mark,
    captureEpoch: 1,
    claim: '',
    loose: '' as Position,
  })
  return {
    log,
    position,
    write: async (ids: readonly number[]): Promise<void> => {
      const changes = ids.map((id) => ({ op: Op.insert, schema, row: [String(id), 'a', null, '1'] }))
      publisher.add(batchOf([{ position: positionOf(16 * ++n), changes }]))
      while (!publisher.idle) publisher.landed(await log.append(publisher.take().round, signal))
    },
    apply: async (): Promise<void> => {
      applied = (await log.ends([at], signal))[0]?.offset ?? 0
    },
    follow: async (kept?: ReturnType<Following['state']>): Promise<Following> => {
      const ends = {
        source: { health: async () => ({ position: position() }) },
        sink: { checkpoints: async () => [checkpoint()] },
      }
      const following = followChanges(log, schemaReader(log, 'shop.schemas'), ends, kept)
      await following.describe(registered, signal)
      return following
    },
  }
}
const nothing = new Map<string, never>()

test('a row is looked at once the target has applied its change, and again after a restart unless it was accepted', async () => {
  const { write, apply, follow, position } = await bench()
  const begun = position()
  const first = await follow()
  await write([1, 2])
  assert.equal(await first.next(10, signal), undefined, 'not applied yet')
  await apply()
  const round = await first.next(10, signal)
  assert.equal(round?.count, 2)
  assert.equal((await (await follow(first.state(nothing))).next(10, signal))?.count, 2)
  assert.ok(round)
  await first.accept(round, [], signal)
  const state = first.state(nothing)
  assert.deepEqual([state.looked, state.passedOver, state.stretch?.after], [2, 0, begun])
  const next = await follow(state)
  assert.equal((await next.next(10, signal))?.count, 0)
  assert.deepEqual(next.state(nothing).stretch?.gaps, {})
})

test('what retention removed before it was read, and a row that could not be told, is a gap until the table is read', async () => {
  const { log, write, apply, follow, position } = await bench()
  const following = await follow()
  await write([1, 2, 3])
  log.truncate(at, 2)
  await apply()
  assert.equal(await following.next(10, signal), undefined)
  const lost = following.state(nothing)
  assert.deepEqual([lost.passedOver, lost.stretch?.gaps], [3, { 'public.orders': position() }])
  await write([4, 5])
  await apply()
  const round = await following.next(10, signal)
  assert.equal(round?.count, 2)
  assert.ok(round)
  await following.accept(round, ['public.orders'], signal)
  const { looked, passedOver, stretch } = following.state(nothing)
  assert.deepEqual([looked, passedOver, stretch?.gaps], [1, 4, { 'public.orders': position() }])
  const read = { verdict: 'equal', at: 0, rows: 5, asOf: position() } as const
  assert.deepEqual(following.state(new Map([['public.orders', read]])).stretch?.gaps, {})
})

test('more than it may be behind is left to the walk', async () => {
  const { write, apply, follow } = await bench()
  const following = await follow()
  const many = Array.from({ length: 10_000 }, (_, i) => i)
  for (let i = 0; i < 6; i++) await write(many)
  await apply()
  const round = await following.next(100, signal)
  assert.ok(round)
  await following.accept(round, [], signal)
  const { looked, passedOver, stretch } = following.state(nothing)
  assert.deepEqual([looked, passedOver], [100, 59_900])
  assert.deepEqual(Object.keys(stretch?.gaps ?? {}), ['public.orders'])
})
