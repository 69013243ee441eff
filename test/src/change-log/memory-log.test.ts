import assert from 'node:assert/strict'
import { test } from 'node:test'
import { batchOf, changeLogConformance } from '../../conformance/change-log.ts'
import { memoryLog, type MemoryLogData } from '../../support/memory-log.ts'

const signal = new AbortController().signal
const data: MemoryLogData = { topics: new Map(), partitions: new Map() }
let topics = 0
changeLogConformance('memory', {
  open: async () => memoryLog({ data }),
  topic: () => `topic-${topics++}`,
  truncate: async (log, at, offset) => {
    if ('truncate' in log && typeof log.truncate === 'function') log.truncate(at, offset)
  },
})

test('lent bytes are overwritten once the next fetch settles', async () => {
  await using log = memoryLog()
  await log.open([{ name: 't', partitions: 1, cleanup: 'delete' }], signal)
  const at = { topic: 't', partition: 0 }
  await log.append([batchOf(at, ['a'])], signal)
  const [first] = await log.fetch([{ ...at, offset: 0 }], 10, signal)
  assert.ok(first)
  assert.ok(first.bytes.some((byte) => byte !== 0xee))
  await log.fetch([{ ...at, offset: 1 }], 10, signal)
  assert.ok(first.bytes.every((byte) => byte === 0xee))
})
