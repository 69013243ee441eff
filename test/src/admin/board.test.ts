import assert from 'node:assert/strict'
import { test } from 'node:test'
import { statusBoard } from '../../../src/admin/board.ts'
import { watermarkTrail } from '../../../src/admin/lag.ts'
import { Failure } from '../../../src/errors.ts'
import { origin, type Checkpoint, type Position, type TableCopy } from '../../../src/model.ts'
import { statusJson } from '../../../src/status.ts'
import { positionOf, tableOf } from '../apply/rows-for-tests.ts'

const schema = tableOf('orders')
const at = { topic: 'shop.public.orders', partition: 0 }
const route = { table: schema.table, topic: at.topic, partitions: 1, pinned: false }
const ranges = [
  { table: schema.table, to: '[10]', estimatedRows: 10 },
  { table: schema.table, from: '[10]', estimatedRows: 7 },
]
const table = { schema, route, plan: { generation: 0, ranges } }

function scene() {
  let now = 100_000
  const trail = watermarkTrail()
  const board = statusBoard('shop', trail, () => now)
  board.plan([table])
  const checkpoint = (offset: number, position: Position = origin): Checkpoint => {
    return { ...at, offset, mark: { position, seq: 0 }, captureEpoch: 1, claim: '', loose: origin }
  }
  const copy = (snapshot: Position, live: boolean): TableCopy => {
    return { table: schema.table, partitions: [at], snapshot, live }
  }
  return {
    board,
    trail,
    pass: (ms: number) => (now += ms),
    checkpoint,
    copies: (snapshot: Position, live: boolean, ...done: readonly string[]) =>
      board.observe({ copies: [{ ...copy(snapshot, live), done, loaded: done.map((_, i) => i + 5) }] }),
    live: (rows: number) => board.observe({ copies: [{ ...copy(positionOf(9), true), rows, done: [], loaded: [] }] }),
    watermark: (position: number, offset: number) =>
      trail.add({
        kind: 'watermark',
        epoch: 1,
        position: positionOf(position),
        published: origin,
        committedAt: now,
        full: true,
        ends: [{ ...at, offset }],
      }),
    observe: (end: number, applied: number) =>
      board.observe({ ends: [{ ...at, offset: end }], checkpoints: [checkpoint(applied)] }),
  }
}

test('a table goes from waiting to live, and its chunks are counted', () => {
  const { board, copies, checkpoint, watermark } = scene()
  const state = (): unknown => {
    const [shown] = board.status().tables
    return [shown?.state, shown?.chunksDone, shown?.chunks]
  }
  copies(origin, false)
  assert.deepEqual(state(), ['waiting', 0, 2])
  copies(positionOf(9), false)
  board.observe({ checkpoints: [checkpoint(3)] })
  assert.deepEqual(state(), ['catching up', 0, 2])
  watermark(9, 3)
  assert.deepEqual(state(), ['copying', 0, 2])
  copies(positionOf(9), false, 'public.orders#0.1')
  assert.deepEqual(state(), ['copying', 1, 2])
  copies(positionOf(9), false, 'public.orders#0.1', 'public.orders#0.0')
  assert.deepEqual(state(), ['copied', 2, 2])
  copies(positionOf(9), true, 'public.orders#0.1', 'public.orders#0.0')
  assert.deepEqual(state(), ['live', 2, 2])
})

test('lag is unknown until a watermark is applied and every table is live, whatever else looks well', () => {
  const { board, copies, observe, watermark, pass } = scene()
  const lag = (): unknown => [board.status().lag.seconds, board.status().lag.proved, board.status().verdict]
  assert.deepEqual(lag(), [null, false, 'unknown'])
  copies(positionOf(1), true)
  observe(5, 5)
  assert.deepEqual(lag(), [null, false, 'unknown'])
  watermark(2, 6)
  assert.deepEqual(lag(), [null, false, 'unknown'])
  observe(6, 6)
  assert.deepEqual(lag(), [0, true, 'idle'])
  pass(2000)
  observe(8, 6)
  assert.deepEqual(lag(), [2, true, 'ok'])
  pass(4000)
  assert.deepEqual(lag(), [6, true, 'behind'])
  copies(positionOf(3), false)
  assert.deepEqual(lag(), [null, false, 'unknown'], 'a table is copied again')
})

test('rows are those of all chunks that are in, whoever copied them, and of a live table those it was copied with', () => {
  const { board, copies, live } = scene()
  const shown = (): unknown => {
    const [first] = board.status().tables
    return [first?.rows, first?.chunksDone]
  }
  copies(positionOf(9), false, 'public.orders#0.1', 'another#0.0')
  assert.deepEqual(shown(), [5n, 1])
  board.copied(schema, 100, 4)
  assert.deepEqual(shown(), [5n, 1])
  board.copied(schema, 100, 4)
  assert.deepEqual(shown(), [8n, 1])
  board.plan([{ ...table, plan: { generation: 1, ranges } }])
  assert.deepEqual(shown(), [0n, 0])
  live(17)
  assert.deepEqual(shown(), [17n, 2])
})

test('an error that ended the run is shown as failed, one that is tried again is not', () => {
  const { board } = scene()
  board.failure = { failure: new Failure('SERVER_UNREACHABLE', { object: 'target' }), retrying: true, at: 90_000 }
  assert.deepEqual([board.status().verdict, board.status().error?.retrying], ['unknown', true])
  board.failure = { failure: new Failure('TARGET_DRIFTED'), retrying: false, at: 95_000 }
  assert.equal(board.status().verdict, 'failed')
  assert.equal(board.status().tables[0]?.state, 'stopped')
})

test('what an earlier run proved is shown until checkpoints that are not as far, or until there is something newer', () => {
  const { board, observe, watermark } = scene()
  const shown = (): unknown => board.status().target.position
  const applied = { position: positionOf(5), committedAt: 7, offsets: 10 }
  board.recall(applied)
  assert.equal(shown(), null, 'nobody has looked at the target')
  assert.deepEqual(board.applied, applied)
  observe(12, 10)
  assert.equal(shown(), positionOf(5))
  watermark(6, 11)
  assert.equal(shown(), positionOf(5))
  observe(12, 11)
  assert.equal(shown(), positionOf(6))
  assert.deepEqual(board.applied, { position: positionOf(6), committedAt: 100_000, offsets: 11 })
  observe(12, 9)
  assert.equal(shown(), null, 'the target was restored')
  assert.equal(board.applied, undefined)
})

test('records that wait and rates are told from both ends of the log', () => {
  const { board, observe, pass } = scene()
  assert.equal(board.status().lag.records, null)
  observe(100, 40)
  assert.equal(board.status().lag.records, 60n)
  pass(2000)
  observe(300, 240)
  assert.deepEqual(board.status().rates, { read: 100, applied: 100 })
  assert.equal(board.status().totals, undefined)
  board.observe({ applied: 12 })
  assert.deepEqual(board.status().totals, { applied: 12n }, 'control records are none')
  pass(10_000)
  observe(300, 300)
  pass(10_000)
  observe(300, 300)
  assert.deepEqual(board.status().rates, { read: 0, applied: 0 })
})

test('its document holds no number that readers of JSON would bend', () => {
  const { board, observe } = scene()
  board.copied(schema, 2 ** 53, 3)
  observe(100, 40)
  const text = JSON.stringify(statusJson(board.status()))
  assert.match(text, /"bytes":"9007199254740992"/)
  assert.match(text, /"records":"60"/)
})

test('the picture of thousands of tables costs each of them once', () => {
  const trail = watermarkTrail()
  const board = statusBoard('shop', trail)
  const names = Array.from({ length: 3000 }, (_, i) => `t${i}`)
  const partitions = names.map((name) => ({ topic: `shop.public.${name}`, partition: 0 }))
  const idOf = (name: string) => ({ schema: 'public', name })
  board.plan(
    names.map((name, i) => ({
      schema: { ...schema, table: idOf(name) },
      route: { table: idOf(name), topic: partitions[i]?.topic ?? '', partitions: 1, pinned: false },
      plan: { generation: 0, ranges: [{ table: idOf(name), estimatedRows: 1 }] },
    })),
  )
  const ends = partitions.map((each) => ({ ...each, offset: 1 }))
  const checkpoints = ends.map((end): Checkpoint => {
    return { ...end, mark: { position: origin, seq: 0 }, captureEpoch: 1, claim: '', loose: origin }
  })
  trail.add({
    kind: 'watermark',
    epoch: 1,
    position: positionOf(9),
    published: origin,
    committedAt: 1,
    full: true,
    ends,
  })
  const copies = names.map((name, i) => {
    const copy = { table: idOf(name), partitions: partitions.slice(i, i + 1), snapshot: positionOf(5), live: false }
    return { ...copy, done: [], loaded: [] }
  })
  const began = performance.now()
  for (const live of [false, true]) {
    board.observe({ checkpoints: [...checkpoints], ends, copies: copies.map((copy) => ({ ...copy, live })) })
    const states = new Set(board.status().tables.map(({ state }) => state))
    assert.deepEqual([...states], [live ? 'live' : 'copying'])
  }
  // Each for each would take a minute.
  assert.ok(performance.now() - began < 5_000, `${performance.now() - began} ms`)
})
