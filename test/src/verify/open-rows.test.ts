import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { mostOpen, openRows, type Sight } from '../../../src/verify/open-rows.ts'

const differs = (key: string): Sight => ({
  table: 'a',
  key: [key],
  verdict: 'different',
  what: 'different',
  columns: ['b'],
})
const doubtful = (key: string): Sight => ({
  table: 'a',
  key: [key],
  verdict: 'unknown',
  columns: [],
  why: 'it changes',
})
const equal = (key: string): Sight => ({ table: 'a', key: [key], verdict: 'equal' })

describe('rows that differ', () => {
  it('stay open until they are seen to be equal', () => {
    const rows = openRows()
    rows.saw(differs('1'), 10)
    rows.saw(differs('1'), 20)
    rows.saw(doubtful('1'), 30)
    const [row] = rows.state.rows
    assert.deepEqual([row?.verdict, row?.firstSeen, row?.lastSeen, row?.rechecks], ['different', 10, 20, 2])
    rows.saw(equal('1'), 40)
    assert.deepEqual(rows.state.rows, [])
  })

  it('count from when they were known to differ, not from when they were in doubt', () => {
    const rows = openRows()
    rows.saw(doubtful('1'), 10)
    rows.saw(differs('1'), 20)
    assert.deepEqual(
      rows.state.rows.map(({ verdict, firstSeen }) => [verdict, firstSeen]),
      [['different', 20]],
    )
  })

  it('are bounded; what finds no room is counted until a walk has ended that did not see it', () => {
    const rows = openRows()
    for (let i = 0; i < mostOpen; i++) assert.ok(rows.saw(differs(String(i)), 1))
    assert.equal(rows.saw(doubtful('x'), 1), false)
    assert.equal(rows.saw(differs('y'), 1), true)
    assert.deepEqual(rows.state.more, { ofWalk: 0, since: 1 })
    const next = openRows(rows.state)
    next.walked()
    assert.deepEqual(next.state.more, { ofWalk: 1, since: 0 })
    assert.equal(next.state.rows.length, mostOpen)
    next.walked()
    assert.deepEqual(next.state.more, { ofWalk: 0, since: 0 })
  })

  it('with a key that is as large as a whole row find no room', () => {
    const rows = openRows()
    assert.equal(rows.saw(doubtful('x'.repeat(10_000)), 1), false)
    assert.equal(rows.saw(differs('x'.repeat(10_000)), 1), true)
    assert.deepEqual(rows.state, { rows: [], more: { ofWalk: 0, since: 1 } })
  })

  it('go with their table', () => {
    const rows = openRows()
    rows.saw(differs('1'), 1)
    rows.keepOnly(new Set(['b']))
    assert.deepEqual(rows.state.rows, [])
  })

  it('are told apart by table and key, null too', () => {
    const rows = openRows()
    for (const key of [[null], ['null'], ['1', '2'], ['1,2']])
      rows.saw({ table: 'a', key, verdict: 'different', columns: [] }, 1)
    assert.equal(rows.state.rows.length, 4)
  })
})
