import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import type { Digest, TableReader } from '../../../src/connector.ts'
import type { Position, Range, TableSchema } from '../../../src/model.ts'
import { verifyChunk } from '../../../src/verify/chunk.ts'
import type { ChunkLine } from '../../../src/verify/journal.ts'
import { stillness } from '../../../src/verify/settle.ts'

const schema: TableSchema = {
  table: { schema: 'public', name: 't' },
  version: 1,
  columns: [{ name: 'id', type: 'integer', form: 'int32', nullable: false }],
  key: [0],
  before: 'key',
  shape: 'columns',
  pinned: false,
}
const whole: Range = { table: schema.table, estimatedRows: 0 }

/** Parts of the range are all the same; `sums` of the whole, look by look. */
function reader(sums: () => bigint): TableReader {
  return {
    ranges: () => assert.fail('not asked'),
    split: async (_, range) => [
      { ...range, to: '["5"]' },
      { ...range, from: '["5"]' },
    ],
    rows: () => assert.fail('not asked'),
    lookup: () => assert.fail('not asked'),
    copies: () => assert.fail('not asked'),
    digest: async (_, { from, to }): Promise<Digest> => ({
      rows: 5000,
      sums: from === undefined && to === undefined ? [sums(), 0n] : [0n, 0n],
    }),
    [Symbol.asyncDispose]: async () => {},
  }
}

async function compared(source: () => bigint, target: () => bigint): Promise<ChunkLine> {
  const lines = await verifyChunk(
    { source: reader(source), target: reader(target) },
    schema,
    [whole],
    { first: 0, last: 0 },
    stillness(async () => '0' as Position),
    { settleMs: 1000, withValues: false, now: () => 0 },
    new AbortController().signal,
  )
  return lines.at(-1) as ChunkLine
}

describe('a range that differs while all its parts are equal', () => {
  it('is not known where nobody writes to it: something lies in no part', async () => {
    const chunk = await compared(
      () => 1n,
      () => 2n,
    )
    assert.deepEqual([chunk.verdict, chunk.unread], ['unknown', true])
    assert.match(chunk.why ?? '', /no row of it differs/)
  })

  it('is equal where it is written to: what differed was under way', async () => {
    let writes = 0n
    const chunk = await compared(
      () => ++writes,
      () => 0n,
    )
    assert.deepEqual([chunk.verdict, chunk.why], ['equal', undefined])
  })
})
