import assert from 'node:assert/strict'
import { test } from 'node:test'
import { tableState, type TableState } from '../../../src/snapshot/table-state.ts'

type Flag = 'yes' | 'no'
type Rest = Record<`live ${Flag}, snapshot ${Flag}, stands ${Flag}, missing ${Flag}`, TableState>

/** Every combination of facts that a pipeline without an error can meet; one that is left out does not compile. */
const expected: Rest = {
  'live no, snapshot no, stands no, missing yes': 'waiting',
  'live no, snapshot no, stands no, missing no': 'waiting',
  'live no, snapshot no, stands yes, missing yes': 'waiting',
  'live no, snapshot no, stands yes, missing no': 'waiting',
  'live no, snapshot yes, stands no, missing yes': 'catching up',
  'live no, snapshot yes, stands no, missing no': 'catching up',
  'live no, snapshot yes, stands yes, missing yes': 'copying',
  'live no, snapshot yes, stands yes, missing no': 'copied',
  'live yes, snapshot no, stands no, missing yes': 'live',
  'live yes, snapshot no, stands no, missing no': 'live',
  'live yes, snapshot no, stands yes, missing yes': 'live',
  'live yes, snapshot no, stands yes, missing no': 'live',
  'live yes, snapshot yes, stands no, missing yes': 'live',
  'live yes, snapshot yes, stands no, missing no': 'live',
  'live yes, snapshot yes, stands yes, missing yes': 'live',
  'live yes, snapshot yes, stands yes, missing no': 'live',
}

test('a table has one state for all that can be known of it', () => {
  const flags = [true, false]
  const word = (flag: boolean): Flag => (flag ? 'yes' : 'no')
  let count = 0
  for (const live of flags)
    for (const snapshot of flags)
      for (const stands of flags)
        for (const missing of [0, 3]) {
          count++
          const facts = { live, snapshot, stands, missing }
          const name = `live ${word(live)}, snapshot ${word(snapshot)}, stands ${word(stands)}, missing ${word(missing > 0)}`
          assert.equal(tableState({ stopped: false, ...facts }), expected[name as keyof Rest], name)
          assert.equal(tableState({ stopped: true, ...facts }), 'stopped', name)
        }
  assert.equal(count, Object.keys(expected).length)
})
