import assert from 'node:assert/strict'
import { test } from 'node:test'
import { demandKnown } from '../../../src/apply/known-log.ts'
import { encodeControl } from '../../../src/avro/control.ts'
import { createPublisher, type Publisher } from '../../../src/capture/publisher.ts'
import { batchBuilder } from '../../../src/change-log/record-batch.ts'
import type { ChangeLog } from '../../../src/change-log/change-log.ts'
import { Failure } from '../../../src/errors.ts'
import type { Checkpoint, ControlRecord, Position } from '../../../src/model.ts'
import { Op } from '../../../src/rows.ts'
import { memoryLog, type MemoryLog } from '../../support/memory-log.ts'
import { batchOf, positionOf, tableOf } from './rows-for-tests.ts'

const signal = AbortSignal.timeout(30_000)
const table = tableOf('orders')
const topic = 'shop.public.orders'
const at = { topic, partition: 0 }
const rowOf = (id: number) => ({ op: Op.insert, schema: table, row: [String(id), 'a', 'b', '1'] })

/** A log of one partition: the epoch record at offset 0, then `changes` changes of positions 1, 2, …, all of capture epoch 3. */
async function filled(changes = 3): Promise<MemoryLog> {
  const log = memoryLog()
  await log.open([{ name: 'shop.control', partitions: 1, cleanup: 'delete' }], signal)
  await log.open([{ name: 'shop.schemas', partitions: 1, cleanup: 'compact' }], signal)
  await log.open([{ name: topic, partitions: 2, cleanup: 'delete' }], signal)
  const publisher = captureOf(3)
  for (const round of publisher.opening()) publisher.landed(await log.append(round, signal))
  for (let n = 1; n <= changes; n++) await add(log, publisher, n)
  return log
}
function captureOf(epoch: number): Publisher {
  return createPublisher({
    pipeline: 'shop',
    epoch,
    route: () => ({ table: table.table, topic, partitions: 1, pinned: true }),
    partitions: [at],
    ends: [],
    clock: () => 0,
    limits: { roundBytes: 1e6, batchBytes: 1e6 },
  })
}
async function add(log: ChangeLog, publisher: Publisher, n: number): Promise<void> {
  publisher.add(batchOf([{ position: positionOf(n), changes: [rowOf(n)] }]))
  publisher.landed(await log.append(publisher.take().round, signal))
}
async function addControl(log: ChangeLog, record: ControlRecord): Promise<void> {
  const builder = batchBuilder({ compress: false })
  const { key, value } = encodeControl(record)
  builder.addControl(record.kind, key, value, 0)
  await log.append([builder.finish(topic, 0)], signal)
}
function checkpoint(offset: number, position: number, seq = 0, captureEpoch = 3): Checkpoint {
  const mark = { position: position === 0 ? ('' as Position) : positionOf(position), seq }
  return { ...at, offset, mark, captureEpoch, claim: 'mine', loose: '' as Position }
}
async function refused(log: ChangeLog, checkpoints: readonly Checkpoint[], told: RegExp): Promise<void> {
  await assert.rejects(demandKnown(log, checkpoints, signal), (error) => {
    assert.ok(error instanceof Failure)
    assert.equal(error.code, 'LOG_DAMAGED')
    assert.equal(error.facts.object, `${topic}/0`)
    assert.match(error.facts.observed ?? '', told)
    assert.match(error.facts.needed ?? '', /applied/)
    assert.match(error.facts.next ?? '', /copy again/)
    return true
  })
}

test('H23: the record before a checkpoint is the one applied last, one passed over, or a control record', async () => {
  const log = await filled()
  await demandKnown(log, [checkpoint(4, 3)], signal)
  await demandKnown(log, [checkpoint(3, 2)], signal)
  await demandKnown(log, [checkpoint(1, 0)], signal) // the epoch record
  await demandKnown(log, [checkpoint(4, 9)], signal) // a repeat, or everything up to a hold
  await demandKnown(log, [checkpoint(4, 2, 0, 4)], signal) // a zombie's
  await demandKnown(log, [checkpoint(0, 0, 0, 0)], signal) // nothing was read yet
  await demandKnown(log, [], signal)
  const mark = { position: positionOf(4), seq: 0 }
  const effect = { kind: 'truncate', tables: [table.table], cascade: false, restartCounters: false } as const
  await addControl(log, { kind: 'barrier', mark, epoch: 3, committedAt: 0, partitions: [at], effect })
  await demandKnown(log, [checkpoint(5, 4)], signal)
  await refused(log, [checkpoint(5, 3)], /position 0{15}4, number 0, epoch 3/)
})

test('H23: a record that the checkpoint cannot explain is another log', async () => {
  const log = await filled()
  await refused(log, [checkpoint(4, 2)], /offset 3 is of position 0{15}3, number 0, epoch 3/)
  await refused(log, [checkpoint(4, 2, 4)], /nothing after position 0{15}2, number 4, epoch 3/)
  await refused(log, [checkpoint(4, 3, 0, 2)], /epoch 3/)
  await refused(log, [checkpoint(1, 0, 0, 2)], /offset 0 is of epoch 3.*nothing after epoch 2/)
})

test('H23: a log that ends before a checkpoint is another one, or lost its end', async () => {
  const log = await filled()
  await refused(log, [checkpoint(5, 3)], /ends at offset 4.*up to offset 5/)
  await refused(log, [checkpoint(900, 3)], /ends at offset 4.*up to offset 900/)
})

test('H23: what retention removed is not asked for, also where it does so meanwhile', async () => {
  const log = await filled()
  log.truncate(at, 4)
  await demandKnown(log, [checkpoint(4, 1)], signal)
  const other = await filled()
  const fetch = other.fetch.bind(other)
  let asked = 0
  const racing: ChangeLog = {
    ...other,
    fetch: async (from, maxWait, aborted) => {
      if (asked++ === 0) other.truncate(at, 4)
      return await fetch(from, maxWait, aborted)
    },
  }
  await demandKnown(racing, [checkpoint(4, 1)], signal)
  assert.equal(asked, 1)
})

test('records that are not ours say nothing', async () => {
  const log = await filled(0)
  const builder = batchBuilder({ compress: false })
  builder.add(Buffer.from('kv'), 0, 1, 1, 2, 0)
  await log.append([builder.finish(topic, 0)], signal)
  await demandKnown(log, [checkpoint(2, 0)], signal)
})

test('all partitions of a lane are asked for at once, and again only those that did not come', async () => {
  const log = await filled()
  const asked: number[] = []
  const counted: ChangeLog = {
    ...log,
    fetch: async (from, maxWait, aborted) => {
      asked.push(from.length)
      return (await log.fetch(from, maxWait, aborted)).slice(0, 1)
    },
  }
  const other = { ...checkpoint(1, 0), partition: 1 }
  await addTo(log, 1)
  await demandKnown(counted, [checkpoint(4, 3), other], signal)
  assert.deepEqual(asked, [2, 1])
})

async function addTo(log: ChangeLog, partition: number): Promise<void> {
  const builder = batchBuilder({ compress: false })
  const { key, value } = encodeControl({ kind: 'epoch', epoch: 3 })
  builder.addControl('epoch', key, value, 0)
  await log.append([builder.finish(topic, partition)], signal)
}

test('a checkpoint may stand behind a record of somebody else, readable as ours or not', async () => {
  const log = await filled()
  for (const value of ['{}', '\0\0\0\0\x4dan envelope of another registry']) {
    const builder = batchBuilder({ compress: false })
    builder.add(Buffer.from(value), -1, -1, 0, value.length, 0)
    await log.append([builder.finish(topic, 0)], signal)
    const [end] = await log.ends([at], signal)
    await demandKnown(log, [checkpoint(end?.offset ?? 0, 3)], signal)
  }
})
