import assert from 'node:assert/strict'
import { test } from 'node:test'
import { asFailure, codes, Failure, type ErrorCode } from '../../src/errors.ts'

test('every code says what it means and what to do, and has an exit code of the documented ones', () => {
  for (const [code, { meaning, next, exit, policy }] of Object.entries(codes)) {
    assert.match(code, /^[A-Z]+(_[A-Z]+)*$/)
    assert.ok(meaning.length > 10 && next.length > 5, code)
    assert.ok([1, 2, 3, 5, 6, 7, 130].includes(exit), `${code}: ${exit}`)
    assert.ok(['retry', 'operator', 'stop', 'bug'].includes(policy))
  }
})

test('an error names its code, its object and what was observed', () => {
  const failure = new Failure('SLOT_LOST', { object: 'slot shop', observed: 'wal_status is lost' })
  assert.equal(failure.message, `SLOT_LOST: ${codes.SLOT_LOST.meaning}: slot shop: wal_status is lost`)
  assert.equal(new Failure('SLOT_LOST').message, `SLOT_LOST: ${codes.SLOT_LOST.meaning}`)
  assert.equal(failure.policy, 'stop')
})

test('what others throw is a defect until it is mapped; ours passes as it is', () => {
  const ours = new Failure('FENCED')
  assert.equal(asFailure(ours), ours)
  const cause = new TypeError('no')
  const theirs = asFailure(cause)
  assert.deepEqual([theirs.code, theirs.facts.observed, theirs.cause], ['BUG' satisfies ErrorCode, 'no', cause])
  assert.equal(asFailure('text').facts.observed, 'text')
})
