import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { memoryStore } from '../../../src/coordinate/state-store.ts'
import { openRows } from '../../../src/verify/open-rows.ts'
import { emptyReport, keepSummary, summarise } from '../../../src/verify/report.ts'
import { openKeeper, readVerification } from '../../../src/verify/watched.ts'

const never = new AbortController().signal

describe('what a status tells of verification', () => {
  for (const [others, verdict, told] of [
    [0, 'equal', 'equal'],
    [3, 'equal', 'unknown'],
    [3, 'different', 'different'],
  ] as const)
    it(`is ${told} where what was asked for is ${verdict} and ${others} tables were not asked for`, async () => {
      const store = memoryStore()
      const begin = { kind: 'begin', v: 1, pipeline: 'shop', at: 0, withValues: false, tables: [] } as const
      const report = emptyReport({ ...begin, ...(others > 0 && { others }) })
      report.shapes = { kind: 'shapes', at: 1, verdict: 'equal', differences: [] }
      report.end = { kind: 'end', at: 1, verdict, throttledMs: 0 }
      await keepSummary(store, report, false, never)
      const verification = await readVerification(store, never)
      assert.equal(verification?.standing.verdict, told)
    })

  for (const [what, ended, walk, told] of [
    ['another verification named after it was read', 2_000, false, 'different'],
    ['another verification named before it was read', 500, false, 'equal'],
    ['its own walk named, and that were found equal since', 2_000, true, 'equal'],
  ] as const)
    it(`is ${told} where a continuous one knows of none, but of rows that ${what}`, async () => {
      const store = memoryStore()
      const table = { schema: 'public', name: 'a' }
      await store.put('table/public.a', { schema: { table } }, 0, never)
      const keeper = await openKeeper(store, never)
      const changes = { offsets: {}, looked: 0, passedOver: 0 }
      await keeper.keep({ v: 1, since: 0, at: 0, walks: 1, changes, open: openRows().state }, never)
      await keeper.cover('public.a', { verdict: 'equal', at: 1_000, rows: 1 }, never)
      const report = emptyReport({
        kind: 'begin',
        v: 1,
        pipeline: 'shop',
        at: ended,
        withValues: false,
        tables: [{ table: 'public.a', columns: [], key: [], ranges: [{ table, estimatedRows: 1 }] }],
      })
      summarise(report, { kind: 'shapes', at: ended, verdict: 'equal', differences: [] })
      const counts = { source: 1, target: 1, onlySource: 0, onlyTarget: 0, different: 1, unsettled: 0, transient: 0 }
      const place = { table: 'public.a', first: 0, last: 0, at: ended }
      summarise(report, { kind: 'chunk', ...place, verdict: 'different', ...counts, rechecks: 1 })
      summarise(report, { kind: 'end', at: ended, verdict: 'different', throttledMs: 0 })
      await keepSummary(store, report, walk, never)
      const verification = await readVerification(store, never)
      assert.equal(verification?.standing.verdict, told)
      assert.deepEqual((await openKeeper(store, never)).covers.get('public.a'), {
        verdict: 'equal',
        at: 1_000,
        rows: 1,
      })
    })

  for (const [shapes, told] of [
    ['equal', 'equal'],
    ['different', 'different'],
    ['unknown', 'unknown'],
    [undefined, 'unknown'],
  ] as const)
    it(`is ${told} where rows are equal and definitions are ${shapes ?? 'not compared'}`, async () => {
      const store = memoryStore()
      const report = emptyReport({ kind: 'begin', v: 1, pipeline: 'shop', at: 0, withValues: false, tables: [] })
      if (shapes !== undefined) report.shapes = { kind: 'shapes', at: 1, verdict: shapes, differences: [] }
      report.end = { kind: 'end', at: 1, verdict: 'equal', throttledMs: 0 }
      await keepSummary(store, report, false, never)
      const verification = await readVerification(store, never)
      assert.equal(verification?.standing.verdict, told)
    })
})
