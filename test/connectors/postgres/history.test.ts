import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { tableHistory } from '../../../connectors/postgres/history.ts'
import { positionOf } from '../../../connectors/postgres/position.ts'
import type { Shape, Shapes } from '../../../connectors/postgres/source-queries.ts'
import { origin, type TableSchema } from '../../../src/model.ts'

const oid = 5
function look(lsn: number, change: Partial<Shape> = {}): Shapes {
  const plain = { collation: null, generated: '', expression: null, needs: null, missing: null, touched: '1' }
  const columns = [{ number: 1, name: 'id', type: 23, typmod: -1, declared: 'integer', notNull: true, ...plain }]
  const shape: Shape = {
    oid,
    schema: 'public',
    name: 'a',
    kind: 'r',
    identity: 'd 1',
    relfilenode: 1,
    touched: '1',
    entry: 1,
    filtered: false,
    leaves: [],
    attributes: [],
    isPartition: false,
    dropped: [],
    columns,
    ...change,
  }
  return { transactions: { next: 10, inProgress: new Set() }, lsn: `0/${lsn.toString(16)}`, tables: [shape] }
}
const schema: TableSchema = {
  table: { schema: 'public', name: 'a' },
  version: 1,
  columns: [{ name: 'id', type: 'integer', form: 'int32', nullable: false }],
  key: [0],
  before: 'key',
  shape: 'columns',
  pinned: false,
}

test('a look that fails is taken again, and so is the record of what it showed', async () => {
  const first = look(1)
  let looks = 0
  let kept = 0
  const history = tableHistory({
    versions: first.tables.map((shape) => ({ oid, from: { position: origin, seq: 0 }, schema, shape, changes: [] })),
    left: [],
    after: origin,
    looked: first,
    digest: async () => 'another',
    look: async () => {
      if (++looks === 1) throw new Error('nobody answers')
      return look(2, { relfilenode: 2 })
    },
    keep: async () => {
      if (++kept === 1) throw new Error('nobody answers')
    },
    typeName: async () => '',
    record: async () => [],
  })
  const deadline = performance.now() + 20_000
  for (let place = 3n; looks < 2 || kept < 2; place++) {
    assert.ok(performance.now() < deadline, `${looks} looks, kept ${kept} times`)
    history.passing(positionOf(place))
    await sleep(20)
  }
})

test('of two looks at a table the later one is recorded, and a record that fails keeps nobody from looking', async () => {
  const first = look(1)
  let looks = 0
  const kept: number[] = []
  const failing = 5
  const history = tableHistory({
    versions: first.tables.map((shape) => ({ oid, from: { position: origin, seq: 0 }, schema, shape, changes: [] })),
    left: [],
    after: origin,
    looked: first,
    digest: async () => `${looks}`,
    look: async () => look(2, { relfilenode: ++looks + 1 }),
    keep: async (shapes) => {
      if (looks < failing) throw new Error('nobody answers')
      kept.push(...shapes.map(({ relfilenode }) => relfilenode))
    },
    typeName: async () => '',
    record: async () => [],
  })
  const deadline = performance.now() + 30_000
  for (let place = 3n; kept.length === 0; place++) {
    assert.ok(performance.now() < deadline, `${looks} looks`)
    history.passing(positionOf(place))
    await sleep(20)
  }
  assert.deepEqual(kept, [failing + 1])
})
