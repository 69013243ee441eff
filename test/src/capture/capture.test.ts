import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { encodeControl } from '../../../src/avro/control.ts'
import { capture, demandEnds, readTail } from '../../../src/capture/capture.ts'
import { placeOf, type Place } from '../../../src/capture/published.ts'
import { createPublisher, type Publisher } from '../../../src/capture/publisher.ts'
import { batchBuilder } from '../../../src/change-log/record-batch.ts'
import type { ChangeStream, Source, SourceEvent } from '../../../src/connector.ts'
import { origin, type ControlRecord, type Position, heartbeatPrefix } from '../../../src/model.ts'
import { Op } from '../../../src/rows.ts'
import { memoryLog, type MemoryLog, type MemoryLogOptions } from '../../support/memory-log.ts'
import { batchOf, positionOf, tableOf } from '../apply/rows-for-tests.ts'

const table = tableOf('orders')
const data = { topic: 'shop.public.orders', partition: 0 }
const control = { topic: 'shop.control', partition: 0 }
const signal = AbortSignal.timeout(20_000)
const beginning: Place = { after: origin, published: origin, unread: [{ ...data, offset: 0, epoch: 0 }] }

async function logWith(options: MemoryLogOptions = {}): Promise<MemoryLog> {
  const log = memoryLog(options)
  const names = [data.topic, control.topic]
  await log.open(
    names.map((name) => ({ name, partitions: 1, cleanup: 'delete' })),
    signal,
  )
  await log.open([{ name: 'shop.schemas', partitions: 1, cleanup: 'compact' }], signal)
  return log
}
function publisherOf(epoch: number): Publisher {
  return createPublisher({
    pipeline: 'shop',
    epoch,
    route: () => ({ table: table.table, topic: data.topic, partitions: 1, pinned: false }),
    partitions: [data],
    ends: [],
    clock: () => 0,
    limits: { roundBytes: 1e6, batchBytes: 1e6 },
  })
}
const rows = (n: number): SourceEvent =>
  batchOf([{ position: positionOf(n), changes: [{ op: Op.insert, schema: table, row: ['1', 'a', 'b', '2'] }] }])
const heartbeat = (n: number): SourceEvent => {
  return { kind: 'message', position: positionOf(n), committedAt: 5, prefix: heartbeatPrefix, content: Buffer.of() }
}

/** Gives these events and then waits for ever; `idle` resolves when it does. */
function sourceOf(
  events: readonly SourceEvent[],
  waiting: boolean,
): { source: Source; acked: Position[]; idle: Promise<void> } {
  const acked: Position[] = []
  const idle = Promise.withResolvers<void>()
  const stream: ChangeStream = {
    waiting,
    ack: (position) => void acked.push(position),
    async *[Symbol.asyncIterator]() {
      yield* events
      idle.resolve()
      await new Promise(() => {})
    },
    async [Symbol.asyncDispose]() {},
  }
  // Only `changes` is called.
  return { source: { changes: async () => stream } as unknown as Source, acked, idle: idle.promise }
}

test('after a stop everything in hand is sent and acknowledged', async () => {
  const log = await logWith()
  // The stream says that more is waiting, so nothing is sent before the stop.
  const { source, acked, idle } = sourceOf([rows(16), heartbeat(17), rows(32), heartbeat(33)], true)
  const stop = new AbortController()
  const running = capture(source, log, publisherOf(1), beginning, { signal }, stop.signal)
  await idle
  assert.deepEqual(acked, [])
  stop.abort()
  await running
  assert.deepEqual(acked, [positionOf(33)])
  assert.equal((await log.ends([data], signal))[0]?.offset, 3, 'the epoch record and two rows')
})

test('a round is acknowledged only when a watermark over it is durable', async () => {
  const appended: string[][] = []
  const acked: Position[] = []
  const log = await logWith({
    before: async (round) => {
      assert.deepEqual(acked, [])
      appended.push(round.map(({ topic }) => topic).toSorted())
    },
  })
  const { source, idle, ...more } = sourceOf([rows(16), heartbeat(17)], false)
  const stop = new AbortController()
  const running = capture(source, log, publisherOf(1), beginning, { signal }, stop.signal)
  await idle
  stop.abort()
  await running
  acked.push(...more.acked)
  assert.deepEqual(acked, [positionOf(17)])
  assert.deepEqual(appended, [[control.topic], [data.topic], [data.topic, 'shop.schemas'], [control.topic]])
})

test('what was pulled is forgotten while the capture runs', async () => {
  const log = await logWith()
  const pulled: WeakRef<object>[] = []
  const idle = Promise.withResolvers<void>()
  const stream: ChangeStream = {
    waiting: false,
    ack: () => {},
    async *[Symbol.asyncIterator]() {
      for (let n = 1; n <= 100; n++) {
        const event = rows(16 * n)
        pulled.push(new WeakRef(event))
        yield event
      }
      idle.resolve()
      await new Promise(() => {})
    },
    async [Symbol.asyncDispose]() {},
  }
  const stop = new AbortController()
  const source = { changes: async () => stream } as unknown as Source
  const running = capture(source, log, publisherOf(1), beginning, { signal }, stop.signal)
  await idle.promise
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  await new Promise((resolve) => setImmediate(resolve))
  collect()
  const kept = pulled.filter((event) => event.deref() !== undefined).length
  assert.ok(kept <= 2, `${kept} of ${pulled.length} events are still held`)
  stop.abort()
  await running
})

test('a failed append is the capture’s failure, and nothing is acknowledged', async () => {
  let appends = 0
  const log = await logWith({
    after: async () => {
      if (++appends === 3) throw new Error('the answer is lost')
    },
  })
  const { source, acked } = sourceOf([rows(16), heartbeat(17), rows(32)], false)
  const running = capture(source, log, publisherOf(1), beginning, { signal }, new AbortController().signal)
  await assert.rejects(running, /the answer is lost/)
  assert.deepEqual(acked, [])
})

async function append(log: MemoryLog, record: ControlRecord): Promise<void> {
  const builder = batchBuilder({ compress: false })
  const { key, value } = encodeControl(record)
  builder.addControl(record.kind, key, value, 0)
  await log.append([builder.finish(control.topic, 0)], signal)
}
const watermark = (epoch: number, n: number): ControlRecord => {
  return {
    kind: 'watermark',
    epoch,
    position: positionOf(n),
    published: positionOf(n),
    committedAt: 0,
    full: true,
    ends: [],
  }
}

test('the tail tells the highest epoch and the newest watermark that counts', async () => {
  const log = await logWith()
  const nothing = { epoch: 0, watermark: undefined, ends: [], vouchedIn: 0, published: origin }
  assert.deepEqual(await readTail(log, 'shop', signal), nothing)
  await append(log, { kind: 'epoch', epoch: 3 })
  await append(log, watermark(3, 16))
  await append(log, watermark(3, 32))
  await append(log, { kind: 'epoch', epoch: 5 })
  await append(log, watermark(3, 48))
  await append(log, watermark(5, 24))
  const tail = await readTail(log, 'shop', signal)
  assert.deepEqual([tail.epoch, tail.watermark?.position, tail.watermark?.epoch], [5, positionOf(32), 3])
})

test('what others wrote to the control topic is passed over', async () => {
  const log = await logWith()
  await append(log, watermark(1, 7))
  const theirs = batchBuilder({ compress: false })
  theirs.add(Buffer.from('k{"hello":1}'), 0, 1, 1, 12, 0)
  theirs.add(Buffer.from('k'), 0, 1, 1, 1, 0)
  await log.append([theirs.finish(control.topic, 0)], signal)
  const { epoch, watermark: newest } = await readTail(log, 'shop', signal)
  assert.deepEqual([epoch, newest?.position], [1, positionOf(7)])
})

test('records of the tail that have expired are not needed', async () => {
  const log = await logWith()
  for (let n = 1; n <= 40; n++) await append(log, watermark(1, n))
  log.truncate(control, 33)
  assert.equal((await readTail(log, 'shop', signal)).watermark?.position, positionOf(40))
})

test('H14: without its last watermark a log is not gone on with', async () => {
  const log = await logWith()
  await append(log, watermark(1, 7))
  log.truncate(control, 1)
  await assert.rejects(readTail(log, 'shop', signal), { code: 'LOG_GAP' })
})

test('what a later full vector does not name was left out, and its topic may be made anew', async () => {
  const log = await logWith()
  const gone = { topic: 'shop.public.gone', partition: 0, offset: 9 }
  await append(log, { ...watermark(1, 7), ends: [{ ...data, offset: 3 }, gone] } as ControlRecord)
  await append(log, { ...watermark(2, 8), ends: [{ ...data, offset: 3 }] } as ControlRecord)
  await append(log, { ...watermark(2, 9), full: false, ends: [{ ...data, offset: 5 }] } as ControlRecord)
  assert.deepEqual((await readTail(log, 'shop', signal)).ends, [{ ...data, offset: 5 }])
})

test('H23: a log that ends before a place it reached is not appended to', async () => {
  const log = await logWith()
  const other = { topic: 'shop.public.other', partition: 0 }
  await append(log, {
    ...watermark(1, 7),
    ends: [
      { ...data, offset: 9 },
      { ...other, offset: 4 },
    ],
  } as ControlRecord)
  await append(log, { ...watermark(1, 8), full: false, ends: [{ ...data, offset: 12 }] } as ControlRecord)
  const { ends } = await readTail(log, 'shop', signal)
  assert.deepEqual(ends, [
    { ...data, offset: 12 },
    { ...other, offset: 4 },
  ])
  demandEnds(
    [
      { ...data, offset: 12 },
      { ...other, offset: 5 },
    ],
    ends,
  )
  assert.throws(
    () =>
      demandEnds(
        [
          { ...data, offset: 11 },
          { ...other, offset: 5 },
        ],
        ends,
      ),
    { code: 'LOG_DAMAGED' },
  )
})

/** A log whose data partition holds rows published from these places, each under its epoch. */
async function publishedLog(...records: readonly { readonly n: number; readonly epoch: number }[]): Promise<MemoryLog> {
  const log = await logWith()
  for (const { n, epoch } of records) {
    const publisher = publisherOf(epoch)
    publisher.add(rows(n))
    await log.append(publisher.take().round, signal)
  }
  return log
}
/** What a capture's stream is asked to hold, right before its first pull; `refuse`: its answer. */
async function askedToHold(log: MemoryLog, place: Place, refuse?: Error): Promise<readonly (Position | 'pulled')[]> {
  const seen: (Position | 'pulled')[] = []
  const { source, acked } = sourceOf([], false)
  const stream = await source.changes(origin, signal)
  stream.demandHeld = async (published) => {
    seen.push(published)
    await Promise.resolve()
    if (refuse) throw refuse
  }
  const pulled = Promise.withResolvers<void>()
  const events = stream[Symbol.asyncIterator].bind(stream)
  stream[Symbol.asyncIterator] = () => {
    seen.push('pulled')
    pulled.resolve()
    return events()
  }
  const stop = new AbortController()
  const running = capture(source, log, publisherOf(9), place, { signal }, stop.signal)
  if (refuse) await assert.rejects(running, refuse)
  else {
    await pulled.promise
    stop.abort()
    await running
  }
  assert.deepEqual(acked, [])
  return seen
}

test('H11: before the first pull the source must hold the newest place that anyone published from', async () => {
  const sentAgain = await publishedLog({ n: 16, epoch: 1 }, { n: 48, epoch: 1 }, { n: 32, epoch: 2 })
  assert.deepEqual(await askedToHold(sentAgain, beginning), [positionOf(48), 'pulled'])
  const zombie = await publishedLog({ n: 16, epoch: 1 }, { n: 32, epoch: 2 }, { n: 48, epoch: 1 })
  assert.deepEqual(await askedToHold(zombie, beginning), [positionOf(32), 'pulled'])
  const known = { ...beginning, published: positionOf(64), unread: [{ ...data, offset: 2, epoch: 2 }] }
  assert.deepEqual(await askedToHold(sentAgain, known), [positionOf(64), 'pulled'])
  const expired = await publishedLog({ n: 16, epoch: 1 }, { n: 48, epoch: 1 })
  expired.truncate(data, 2)
  assert.deepEqual(await askedToHold(expired, beginning), [origin, 'pulled'])
})

test('H11: what came while a capture opened counts, and a source that does not hold it is not pulled', async () => {
  const log = await publishedLog({ n: 16, epoch: 1 })
  const late = await publishedLog({ n: 48, epoch: 1 })
  const [batch] = late.data.partitions.get('shop.public.orders/0')?.batches ?? []
  assert.ok(batch)
  let opening = true
  const slow = memoryLog({
    data: log.data,
    before: async () => {
      if (!opening) return
      opening = false
      // A former capture's append on its way, between the epoch in the control topic and those in the partitions.
      await log.append([{ ...data, bytes: Buffer.from(batch.bytes), count: batch.count }], signal)
    },
  })
  const lost = new Error('lost')
  assert.deepEqual(await askedToHold(slow, beginning, lost), [positionOf(48)])
})

test('H11: what watermarks and checkpoints say of what is published needs no reading', () => {
  const checkpoint = {
    ...data,
    offset: 7,
    mark: { position: positionOf(48), seq: 0 },
    captureEpoch: 3,
    claim: '',
    loose: origin,
  }
  const tail = { epoch: 4, watermark: undefined, ends: [], vouchedIn: 0, published: origin }
  const first = placeOf(tail, positionOf(2), [data], [checkpoint])
  const unread = [{ ...data, offset: 7, epoch: 3 }]
  assert.deepEqual(first, { after: positionOf(2), published: positionOf(48), unread })
  const told = watermark(4, 32)
  assert.ok(told.kind === 'watermark')
  const vouched = { ...tail, watermark: told, vouchedIn: 4, published: positionOf(40) }
  const later = placeOf({ ...vouched, ends: [{ ...data, offset: 9 }] }, origin, [data], [checkpoint])
  assert.deepEqual(later, {
    after: positionOf(32),
    published: positionOf(48),
    unread: [{ ...data, offset: 9, epoch: 4 }],
  })
  // Of a table that was added since: it begins at a mark which is no change's.
  assert.equal(placeOf(vouched, origin, [data], [checkpoint]).published, positionOf(40))
  // What a copy has read of the source is at the target, too.
  for (const copied of [{ loose: positionOf(64) }, { hold: positionOf(64) }])
    assert.equal(placeOf(vouched, origin, [data], [{ ...checkpoint, ...copied }]).published, positionOf(64))
})
