import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { hazardTable, readHazards, renderHazards, type Told } from './hazards.ts'

const page = `
| H1 | Held. \`test/a.test.ts\`: "one", "of …"; \`test/conformance/sink.ts\`: "two" |
| H2 | In part. \`test/a.test.ts\`: "three" |
| H12 | Not built (later) |
| H13 | Design rule, test to come |
| H14 | Not built. \`test/a.test.ts\`: "refused" |`
const told = (file: string, path: readonly string[], outcome: Told['outcome'] = 'passed'): Told => ({
  file,
  path,
  outcome,
})

test('the results of a run are counted for the hazards that the page or the test itself names', () => {
  const rows = hazardTable(readHazards(page), [
    told('test/a.test.ts', ['suite', 'one']),
    told('test/a.test.ts', ['of', 'of many kinds']),
    told('test/other.test.ts', ['one'], 'failed'),
    told('test/pg.test.ts', ['sink', 'two']),
    told('test/a.test.ts', ['three'], 'failed'),
    told('test/b.test.ts', ['H2, H13: a suite', 'anything'], 'skipped'),
    told('test/a.test.ts', ['H1 is not named so', 'H130: nor so']),
  ])
  assert.deepEqual(
    rows.map(({ id, says, counts, result }) => [id, says, counts.passed, counts.failed, counts.skipped, result]),
    [
      ['H1', 'held', 3, 0, 0, 'passed'],
      ['H2', 'in part', 0, 1, 1, 'failed'],
      ['H12', 'not built', 0, 0, 0, 'not built'],
      ['H13', 'rule only', 0, 0, 1, 'skipped'],
      ['H14', 'not built', 0, 0, 0, 'not built'],
    ],
  )
})

test('a hazard whose tests did not all run is not called passed', () => {
  const [first, second] = hazardTable(readHazards(page), [told('test/a.test.ts', ['one'])])
  assert.deepEqual([first?.result, first?.absent], ['incomplete', ['of …', 'two']])
  assert.equal(second?.result, 'not run')
  assert.match(renderHazards(first ? [first] : []), /^H1 +held +1 +0 +0 {2}incomplete: 2 named not run$/m)
})

test('the page names every hazard once', () => {
  const text = readFileSync(new URL('../../docs/guarantees.md', import.meta.url), 'utf8')
  assert.deepEqual(
    readHazards(text).map(({ id }) => id),
    Array.from({ length: 34 }, (_, i) => `H${i + 1}`),
  )
})
