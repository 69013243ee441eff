import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { controlTopic, partitionBudget, routes, schemasTopic, topicName } from '../../../src/change-log/topics.ts'
import { Failure } from '../../../src/errors.ts'
import type { TableSchema } from '../../../src/model.ts'

const schema = (schemaName: string, name: string, pinned = false): TableSchema => ({
  table: { schema: schemaName, name },
  version: 1,
  columns: [],
  key: [],
  before: 'key',
  shape: 'columns',
  pinned,
})

test('names are pipeline, schema and table, with other bytes escaped', () => {
  assert.equal(topicName('shop', { schema: 'public', name: 'orders' }), 'shop.public.orders')
  assert.equal(topicName('shop', { schema: 'public', name: 'a.b-c' }), 'shop.public.a-2eb-2dc')
  assert.equal(topicName('shop', { schema: 'S', name: 'é' }), 'shop.S.-c3-a9')
  assert.equal(controlTopic('shop'), 'shop.control')
  assert.equal(schemasTopic('shop'), 'shop.schemas')
})

test('long names are cut and stay apart', () => {
  const one = topicName('shop', { schema: 'public', name: '端'.repeat(60) + 'a' })
  const two = topicName('shop', { schema: 'public', name: '端'.repeat(60) + 'b' })
  assert.equal(one.length, 200)
  assert.match(one, /-[0-9a-f]{16}$/)
  assert.notEqual(one, two)
})

test('any names give valid and different topics', () => {
  const name = fc.string({ minLength: 1, maxLength: 63, unit: 'grapheme' })
  fc.assert(
    fc.property(fc.tuple(name, name), fc.tuple(name, name), ([s1, n1], [s2, n2]) => {
      fc.pre(s1.isWellFormed() && n1.isWellFormed() && s2.isWellFormed() && n2.isWellFormed())
      const a = topicName('p', { schema: s1, name: n1 })
      const b = topicName('p', { schema: s2, name: n2 })
      assert.match(a, /^[A-Za-z0-9._-]{1,200}$/)
      assert.equal(a === b, s1 === s2 && n1 === n2)
    }),
  )
})

test('small and pinned tables get one partition', () => {
  const all = routes(
    'p',
    [
      { schema: schema('public', 'big'), estimatedRows: 100_000 },
      { schema: schema('public', 'small'), estimatedRows: 99_999 },
      { schema: schema('public', 'keyless', true), estimatedRows: 1e9 },
    ],
    8,
  )
  assert.deepEqual(
    all.map((route) => [route.topic, route.partitions, route.pinned]),
    [
      ['p.public.big', 8, false],
      ['p.public.small', 1, false],
      ['p.public.keyless', 1, true],
    ],
  )
})

test('tables whose topics a broker cannot tell apart are refused', () => {
  const tables = [schema('public', 'a_b'), schema('public_a', 'b')].map((each) => ({ schema: each, estimatedRows: 0 }))
  assert.throws(
    () => routes('p', tables, 8),
    (error) => error instanceof Failure && error.code === 'CONFIG_INVALID' && /p\.public_a\.b/.test(error.message),
  )
})

test('too many partitions on a broker are a warning, then a blocker', () => {
  const route = { table: { schema: 's', name: 't' }, topic: 't', pinned: false }
  const level = (partitions: number, brokers: number): string =>
    partitionBudget([{ ...route, partitions }], brokers).level
  assert.equal(level(4_000, 1), 'ok')
  assert.equal(level(4_001, 1), 'warning')
  assert.equal(level(15_001, 1), 'blocker')
  assert.equal(level(15_001, 3), 'warning')
})
