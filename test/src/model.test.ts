import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import {
  compareMarks,
  comparePositions,
  origin,
  partitionName,
  tableName,
  type Mark,
  type Position,
} from '../../src/model.ts'
import { Output } from '../../src/output.ts'

const position = (text: string): Position => text as Position
const hex = fc.nat().map((n) => n.toString(16).padStart(16, '0'))

test('positions order as their places do, whatever resume token follows', () => {
  fc.assert(
    fc.property(hex, hex, fc.string(), fc.string(), (a, b, left, right) => {
      const expected = a < b ? -1 : a > b ? 1 : 0
      assert.equal(comparePositions(position(a), position(b)), expected)
      assert.equal(comparePositions(position(`${a}|${left}`), position(`${b}|${right}`)), expected)
      assert.equal(comparePositions(position(`${a}|${left}`), position(b)), expected)
    }),
  )
})

test('a token never decides, not even where it begins before the place of the other ends', () => {
  const table: readonly (readonly [string, string, number])[] = [
    ['7200000000000001|82zzz', '7200000000000001|10aaa', 0],
    ['7200000000000001|ffff', '7200000000000002|0000', -1],
    ['7200000000000002', '7200000000000001|ffff|more', 1],
    ['', '0000000000000000', -1],
    ['', '', 0],
    ['', '|token', 0],
  ]
  for (const [a, b, expected] of table) {
    assert.equal(comparePositions(position(a), position(b)), expected, `${a} and ${b}`)
    assert.equal(comparePositions(position(b), position(a)), expected === 0 ? 0 : -expected)
  }
})

test('marks order by position, then by number, and are a total order', () => {
  const mark = fc.record({ position: hex.map(position), seq: fc.nat(9) })
  fc.assert(
    fc.property(mark, mark, mark, (a: Mark, b: Mark, c: Mark) => {
      assert.equal(Math.sign(compareMarks(a, b)) + Math.sign(compareMarks(b, a)), 0)
      if (compareMarks(a, b) <= 0 && compareMarks(b, c) <= 0) assert.ok(compareMarks(a, c) <= 0)
      assert.equal(compareMarks(a, { ...a, seq: a.seq + 1 }), -1)
      assert.ok(compareMarks({ position: origin, seq: 9 }, a) < 0)
    }),
  )
})

test('two tables never share a name, two partitions neither', () => {
  // Few characters, so that names come close.
  const part = fc.string({ unit: fc.constantFrom('a', '.', '"', 'b', ' '), minLength: 1, maxLength: 5 })
  const table = fc.record({ schema: part, name: part })
  fc.assert(
    fc.property(table, table, (a, b) => {
      const same = a.schema === b.schema && a.name === b.name
      assert.equal(tableName(a) === tableName(b), same)
    }),
    {
      numRuns: 5000,
      examples: [
        [
          { schema: 'a.', name: 'b' },
          { schema: 'a', name: '.b' },
        ],
      ],
    },
  )
  assert.equal(tableName({ schema: 'public', name: 'orders' }), 'public.orders')
  assert.equal(tableName({ schema: 'a.b', name: 'c"d' }), '"a.b"."c""d"')
  const at = fc.record({ topic: fc.stringMatching(/^[a-z0-9._-]{1,6}$/), partition: fc.nat(120) })
  fc.assert(
    fc.property(at, at, (a, b) => {
      assert.equal(partitionName(a) === partitionName(b), a.topic === b.topic && a.partition === b.partition)
    }),
  )
})

test('a buffer that grows keeps what was written', () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 20 }), (pieces) => {
      const out = new Output(1)
      for (const piece of pieces) {
        out.reserve(piece.length)
        out.bytes.set(piece, out.at)
        out.at += piece.length
      }
      assert.deepEqual(out.bytes.subarray(0, out.at), Buffer.concat(pieces))
    }),
  )
})
