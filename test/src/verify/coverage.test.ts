import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import { origin, type Position } from '../../../src/model.ts'
import { standing, type Coverage, type TableCover } from '../../../src/verify/coverage.ts'
import { openRows, type OpenRows } from '../../../src/verify/open-rows.ts'

const place = (n: number): Position => n.toString(16).padStart(16, '0') as Position
const cover = (more: Partial<TableCover> = {}): TableCover => ({
  verdict: 'equal',
  at: 1000,
  asOf: place(10),
  rows: 1,
  ...more,
})
const nothingOpen = openRows().state
const followed = (after: number, upTo: number, gaps: Record<string, Position> = {}): Coverage['changes'] => ({
  after: place(after),
  upTo: place(upTo),
  gaps,
})
function open(...rows: readonly (readonly [table: string, verdict: 'different' | 'unknown'])[]): Coverage['open'] {
  const all = openRows()
  for (const [table, verdict] of rows) all.saw({ table, verdict, key: ['1'], columns: [], why: 'it changes' }, 1)
  return all.state
}

describe('how a pipeline stands', () => {
  const cases: readonly (readonly [name: string, coverage: Partial<Coverage>, verdict: string, why?: RegExp])[] = [
    ['all read, all changes since looked at', { changes: followed(5, 20) }, 'equal'],
    ['read after the place itself', { tables: new Map([['a', cover({ asOf: place(20) })]]) }, 'equal'],
    ['a table that was never read', { tables: new Map() }, 'unknown', /a was not read to its end/],
    ['a table not all of which was read', { tables: new Map([['a', cover({ verdict: 'unknown', why: 'no rights' })]]) }, 'unknown', /a: no rights/], // prettier-ignore
    ['rows that differed and were found equal since', { tables: new Map([['a', cover({ verdict: 'different' })]]), changes: followed(5, 20) }, 'equal'], // prettier-ignore
    ['a row that differs', { open: open(['a', 'different'], ['a', 'unknown']) }, 'different', /1 row differs/],
    ['more rows than are kept', { open: { rows: [], more: { ofWalk: 1, since: 1 } } }, 'different', /2 rows differ/],
    [
      'a row in doubt',
      { open: open(['a', 'unknown']), changes: followed(5, 20) },
      'unknown',
      /could not be settled: it/,
    ],
    ['changes that nobody follows', {}, 'unknown', /are not followed/],
    ['changes followed from behind the reading', { changes: followed(11, 20) }, 'unknown', /up to 0+b were not all/],
    ['changes followed from the reading on', { changes: followed(10, 20) }, 'equal'],
    ['changes followed, but not so far', { changes: followed(5, 19) }, 'unknown', /changes after 0+13 have not/],
    ['a gap behind the reading', { changes: followed(5, 20, { a: place(11) }) }, 'unknown', /up to 0+b were not/],
    ['a gap that was read since', { changes: followed(5, 20, { a: place(10) }) }, 'equal'],
    ['a gap in another table', { changes: followed(5, 20, { b: place(15) }) }, 'equal'],
  ]
  for (const [name, given, verdict, why] of cases) {
    it(`${verdict}: ${name}`, () => {
      const coverage = { tables: new Map([['a', cover()]]), open: nothingOpen, ...given }
      const now = standing(coverage, ['a'], place(20))
      assert.equal(now.verdict, verdict, now.why)
      if (why !== undefined) assert.match(now.why ?? '', why)
    })
  }

  it('tells the age of what was read longest ago', () => {
    const tables = new Map([
      ['a', cover({ at: 7 })],
      ['b', cover({ at: 5 })],
      ['gone', cover({ at: 1 })],
    ])
    assert.deepEqual(standing({ tables, open: nothingOpen }, ['a', 'b']), { verdict: 'equal', oldest: 5 })
    assert.equal(standing({ tables, open: nothingOpen }, []).verdict, 'unknown')
  })

  /** Changes of three tables that are applied at once, some of them wrongly; whoever follows them looks at some and passes over others. */
  it('H21: never says equal as of a place while a row is wrong by a change up to there', async () => {
    const event = fc.record({
      kind: fc.constantFrom('change', 'change', 'wrong', 'follow', 'pass over', 'read', 'look again', 'begin anew'),
      table: fc.constantFrom('a', 'b', 'c'),
      row: fc.nat(3),
    })
    let equals = 0
    fc.assert(
      fc.property(fc.array(event, { maxLength: 60 }), (events) => {
        const names = ['a', 'b', 'c']
        const wrong = new Set<string>()
        const tables = new Map<string, TableCover>()
        const rows: OpenRows = openRows()
        let now = 1
        let unseen: { readonly table: string; readonly row: number }[] = []
        let after = place(0)
        let upTo = origin
        let gaps: Record<string, Position> = {}
        const saw = (table: string, row: number): void => {
          const verdict = wrong.has(`${table} ${row}`) ? 'different' : 'equal'
          rows.saw({ table, key: [String(row)], verdict, columns: [] }, now)
        }
        for (const { kind, table, row } of events) {
          if (kind === 'change' || kind === 'wrong') {
            now++
            unseen.push({ table, row })
            if (kind === 'wrong') wrong.add(`${table} ${row}`)
            else wrong.delete(`${table} ${row}`)
          } else if (kind === 'follow' || kind === 'pass over') {
            for (const change of unseen)
              if (kind === 'follow' || change.table !== table) saw(change.table, change.row)
              else gaps[table] = place(now)
            unseen = []
            upTo = place(now)
          } else if (kind === 'read') {
            let equal = true
            for (let row = 0; row < 4; row++)
              if (wrong.has(`${table} ${row}`)) {
                equal = false
                saw(table, row)
              }
            tables.set(table, cover({ asOf: place(now), verdict: equal ? 'equal' : 'different' }))
          } else if (kind === 'look again') for (const one of rows.state.rows) saw(one.table, Number(one.key[0]))
          else {
            unseen = []
            after = place(now)
            upTo = origin
            gaps = {}
          }
          const { verdict } = standing({ tables, open: rows.state, changes: { after, upTo, gaps } }, names, place(now))
          if (verdict !== 'equal') continue
          equals++
          assert.deepEqual([...wrong], [])
        }
      }),
      { numRuns: 3_000 },
    )
    assert.ok(equals > 0, 'it was never equal')
  })
})
