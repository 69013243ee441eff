import assert from 'node:assert/strict'
import { test } from 'node:test'
import { admit, type Admission, type Seen } from '../../../src/apply/admit.ts'
import type { Position } from '../../../src/model.ts'

const at = (text: string): Position => text as Position
const seen: Seen = { position: at('20|token'), seq: 8, epoch: 3 }
const cases: readonly [string, number, number, Admission, string][] = [
  ['20|token', 9, 3, 'new', 'the next change of the transaction'],
  ['20|token', 8, 3, 'repeat', 'the same change'],
  ['20|other', 8, 3, 'repeat', 'the same change, reached by another resume token'],
  ['20|other', 12, 4, 'new', 'a later change of the same place under a successor'],
  ['1f', 100, 3, 'repeat', 'an earlier transaction'],
  ['1f', 100, 4, 'repeat', 'an earlier transaction, sent again by a successor'],
  ['21', 0, 3, 'new', 'the next transaction'],
  ['21', 0, 2, 'zombie', 'a later transaction of a former capture'],
  ['1f', 0, 2, 'zombie', 'an earlier one of a former capture'],
]

for (const [position, seq, epoch, expected, what] of cases) {
  test(`${what}: ${expected}`, () => assert.equal(admit(seen, at(position), seq, epoch), expected))
}

test('everything is new to a partition that has seen nothing', () => {
  assert.equal(admit({ position: at(''), seq: 0, epoch: 0 }, at('0'), 0, 0), 'new')
})
