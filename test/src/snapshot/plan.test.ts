import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Position, Range } from '../../../src/model.ts'
import { chunkId, inOrder, missingChunks } from '../../../src/snapshot/plan.ts'

const table = { schema: 'public', name: 'orders' }
const ranges: readonly Range[] = [
  { table, to: 'k', estimatedRows: 10 },
  { table, from: 'k', to: 'p', estimatedRows: 10 },
  { table, from: 'p', estimatedRows: 4 },
]
const [first, second] = ['01' as Position, '02' as Position]

test('a chunk keeps its id from round to round, so that what is done stays done', () => {
  const plan = { generation: 0, ranges }
  const all = missingChunks(plan, new Set(), first, false)
  assert.deepEqual(
    all.map(({ from, to }) => [from, to]),
    ranges.map(({ from, to }) => [from, to]),
  )
  const done = new Set(all.slice(0, 2).map(({ id }) => id))
  const rest = missingChunks(plan, done, second, true)
  assert.deepEqual(rest, [{ ...ranges[2], id: all[2]?.id, snapshot: second, replace: true }])
})

test('a table that starts over shares no chunk with its former copy', () => {
  const ids = (generation: number): readonly string[] =>
    missingChunks({ generation, ranges }, new Set(), first, false).map(({ id }) => id)
  const done = new Set([...ids(0), ...ids(1)])
  assert.equal(done.size, 6)
  assert.equal(missingChunks({ generation: 2, ranges }, done, second, true).length, 3)
})

test('chunks of different tables never share an id', () => {
  const odd = [
    chunkId({ schema: 'a', name: 'b#0.1' }, 0, 1),
    chunkId({ schema: 'a', name: 'b' }, 0, 1),
    chunkId({ schema: 'a', name: 'b' }, 1, 0),
    chunkId({ schema: 'a.', name: 'b' }, 0, 1),
    chunkId({ schema: 'a', name: '.b' }, 0, 1),
  ]
  assert.equal(new Set(odd).size, odd.length)
})

test('tables that were rewritten come first, then the largest', () => {
  const chunksOf = (name: string, generation: number, ...rows: readonly number[]) => ({
    generation,
    chunks: rows.map((estimatedRows, i) => {
      const range = { table: { schema: 'public', name }, estimatedRows }
      return { ...range, id: `${name}${i}`, snapshot: first, replace: false }
    }),
  })
  const order = inOrder([
    chunksOf('small', 0, 5),
    chunksOf('large', 0, 90, 90),
    chunksOf('done', 0),
    chunksOf('rewritten', 1, 2),
    chunksOf('middle', 0, 100),
  ])
  assert.deepEqual(
    order.map(({ id }) => id),
    ['rewritten0', 'large0', 'large1', 'middle0', 'small0'],
  )
})
