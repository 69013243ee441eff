import assert from 'node:assert/strict'
import { test } from 'node:test'
import { encodeControl } from '../../../src/avro/control.ts'
import { followWatermarks } from '../../../src/capture/follow.ts'
import { createOutbox } from '../../../src/capture/outbox.ts'
import { batchBuilder } from '../../../src/change-log/record-batch.ts'
import { controlTopic } from '../../../src/change-log/topics.ts'
import type { Position } from '../../../src/model.ts'
import { memoryLog, type MemoryLog } from '../../support/memory-log.ts'
import { until } from '../../support/processes.ts'
import { positionOf } from '../apply/rows-for-tests.ts'

const at = { topic: controlTopic('shop'), partition: 0 }
const signal = AbortSignal.timeout(10_000)

async function control(): Promise<MemoryLog & { write(position: number): Promise<void> }> {
  const log = memoryLog()
  await log.open([{ name: at.topic, partitions: 1, cleanup: 'delete' }], signal)
  const outbox = createOutbox({ batchBytes: 1e6 }, false)
  return Object.assign(log, {
    async write(n: number) {
      const position = positionOf(n)
      const both = [
        encodeControl({ kind: 'epoch', epoch: 1 }),
        encodeControl({
          kind: 'watermark',
          epoch: 1,
          position,
          published: position,
          committedAt: 0,
          full: true,
          ends: [],
        }),
      ]
      for (const [i, { key, value }] of both.entries())
        await log.append([outbox.control(at, i === 0 ? 'epoch' : 'watermark', key, value, 0)], signal)
    },
  })
}

async function follow(log: MemoryLog, enough: (seen: readonly Position[]) => boolean): Promise<readonly Position[]> {
  const seen: Position[] = []
  const end = new AbortController()
  const done = followWatermarks(
    log,
    'shop',
    ({ position }) => seen.push(position),
    AbortSignal.any([signal, end.signal]),
  )
  done.catch(() => {})
  await Promise.race([until(() => enough(seen), 5000), done])
  end.abort()
  await assert.rejects(done, { name: 'AbortError' })
  return seen
}

test('watermarks of the tail are seen, then those written from now on, in order and once', async () => {
  const log = await control()
  for (let n = 1; n <= 3; n++) await log.write(n)
  const writing = (async (): Promise<void> => {
    for (let n = 4; n <= 6; n++) await log.write(n)
  })()
  const seen = await follow(log, (so) => so.length >= 6)
  await writing
  assert.deepEqual(seen, [1, 2, 3, 4, 5, 6].map(positionOf))
})

test('what others wrote to the topic is passed over', async () => {
  const log = await control()
  await log.write(1)
  const theirs = batchBuilder({ compress: false })
  theirs.add(Buffer.from('khello'), 0, 1, 1, 6, 0)
  await log.append([theirs.finish(at.topic, 0)], signal)
  await log.write(2)
  assert.deepEqual(await follow(log, (so) => so.length >= 2), [1, 2].map(positionOf))
})

test('records that expired at the beginning are passed over', async () => {
  const log = await control()
  for (let n = 1; n <= 20; n++) await log.write(n)
  log.truncate(at, 31)
  const seen = await follow(log, (so) => so.at(-1) === positionOf(20))
  assert.equal(seen.at(-1), positionOf(20))
  assert.ok(seen.length <= 5)
})
