import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Lane, TableReader } from '../../../src/connector.ts'
import type { ChunkData } from '../../../src/rows.ts'
import { copyChunk } from '../../../src/snapshot/copy-chunk.ts'
import { memorySink } from '../../support/memory-sink.ts'
import { memorySource } from '../../support/memory-source.ts'
import { positionOf, tableOf } from '../apply/rows-for-tests.ts'

const schema = tableOf('orders')
const chunk = { table: schema.table, estimatedRows: 1, id: 'c', snapshot: positionOf(1), replace: false }
const signal = AbortSignal.timeout(5000)

/** What the lane was given, when the two ends name these formats. */
async function given(
  reads: readonly string[] | undefined,
  takes: readonly string[] | undefined,
): Promise<{ readonly data: ChunkData; readonly seen: readonly number[] }> {
  const from = await memorySource([schema]).open().reader('now', signal)
  const into = await memorySink().lane(signal)
  const seen: number[] = []
  let data: ChunkData | undefined
  const reader: TableReader = {
    ...from,
    ...(reads !== undefined && {
      formats: () => reads,
      async *frames() {
        yield Buffer.alloc(3)
        yield Buffer.alloc(40)
      },
    }),
  }
  const lane: Lane = {
    ...into,
    ...(takes !== undefined && { formats: () => takes }),
    async load(_, __, what) {
      data = what
      if (what.kind === 'frames') for await (const _ of what.frames);
      return 7
    },
  }
  assert.equal(await copyChunk(reader, lane, schema, chunk, { epoch: 1, signal }, (bytes) => seen.push(bytes)), 7)
  if (data === undefined) throw new Error('nothing was loaded')
  return { data, seen }
}

test('bulk bytes go through in the first format of the reader that the lane takes, and are counted', async () => {
  const { data, seen } = await given(['fast', 'common', 'plain'], ['plain', 'common'])
  assert.ok(data.kind === 'frames' && data.format === 'common')
  assert.deepEqual(seen, [3, 40])
})

test('rows go through where the ends have no format in common, or one of them has none', async () => {
  assert.equal((await given(['fast'], ['plain'])).data.kind, 'rows')
  assert.equal((await given(undefined, ['plain'])).data.kind, 'rows')
  assert.equal((await given(['fast'], undefined)).data.kind, 'rows')
})
