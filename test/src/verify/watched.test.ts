import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { memoryStore } from '../../../src/coordinate/state-store.ts'
import { emptyReport, keepSummary } from '../../../src/verify/report.ts'
import { readVerification } from '../../../src/verify/watched.ts'

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
      report.end = { kind: 'end', at: 1, verdict, throttledMs: 0 }
      await keepSummary(store, report, never)
      const verification = await readVerification(store, never)
      assert.equal(verification?.standing.verdict, told)
    })
})
