import assert from 'node:assert/strict'
import { test } from 'node:test'
import { decodeControl } from '../../../src/avro/control.ts'
import { readPrefix } from '../../../src/avro/decoder.ts'
import type { Prefix } from '../../../src/avro/plan.ts'
import { createPublisher, type Publisher, type PublisherOptions } from '../../../src/capture/publisher.ts'
import type { EncodedBatch } from '../../../src/change-log/change-log.ts'
import { readBatches } from '../../../src/change-log/read-batches.ts'
import { stamp } from '../../../src/change-log/record-batch.ts'
import type { Route } from '../../../src/change-log/topics.ts'
import type { SourceEvent } from '../../../src/connector.ts'
import { Failure } from '../../../src/errors.ts'
import { partitionName, tableName, type ControlRecord, type Offset, heartbeatPrefix } from '../../../src/model.ts'
import { Op } from '../../../src/rows.ts'
import { batchOf, positionOf, tableOf, type Change } from '../apply/rows-for-tests.ts'

const table = tableOf('orders')
const pinned = tableOf('accounts', { pinned: true })
const routes: readonly Route[] = [
  { table: table.table, topic: 'orders', partitions: 4, pinned: false },
  { table: pinned.table, topic: 'accounts', partitions: 1, pinned: true },
]
const partitions = [0, 1, 2, 3]
  .map((partition) => ({ topic: 'orders', partition }))
  .concat({ topic: 'accounts', partition: 0 })
const heartbeat = (n: number): SourceEvent => {
  return { kind: 'message', position: positionOf(n), committedAt: 5, prefix: heartbeatPrefix, content: Buffer.of() }
}
const changes = (n: number, ...list: readonly Change[]): SourceEvent =>
  batchOf([{ position: positionOf(n), changes: list }])
const insert = (id: number): Change => ({ op: Op.insert, schema: table, row: [String(id), 'a', null, '1'] })

type Bench = { readonly publisher: Publisher; readonly land: (round: readonly EncodedBatch[]) => void }
/** A publisher, and a log that only counts. */
function bench(more: Partial<PublisherOptions> = {}): Bench {
  const publisher = createPublisher({
    pipeline: 'shop',
    epoch: 7,
    route: (id) => routes.find((route) => tableName(route.table) === tableName(id)),
    partitions,
    ends: partitions.map((at) => ({ ...at, offset: 100 })),
    clock: () => 0,
    limits: { roundBytes: 1 << 20, batchBytes: 1 << 20 },
    ...more,
  })
  const ends = new Map<string, number>(partitions.map((at) => [partitionName(at), 100]))
  const land = (round: readonly EncodedBatch[]): void => {
    assert.equal(new Set(round.map(partitionName)).size, round.length, 'one batch a partition')
    const after = round.map(({ topic, partition, count }): Offset => {
      const offset = (ends.get(partitionName({ topic, partition })) ?? 0) + count
      ends.set(partitionName({ topic, partition }), offset)
      return { topic, partition, offset }
    })
    publisher.landed(after)
  }
  return { publisher, land }
}

type Told = {
  readonly at: string
  readonly control?: ControlRecord
  readonly op?: number
  readonly seq?: number
  readonly epoch?: number
}
/** What the records of a round say; without the schemas topic. */
function read(round: readonly EncodedBatch[]): readonly Told[] {
  return round
    .filter(({ topic }) => topic !== 'shop.schemas')
    .flatMap((batch) => {
      stamp(batch, -1n, -1, -1)
      const fetched = readBatches(batch, Buffer.from(batch.bytes), 0, batch.count)
      const prefix: Prefix = {
        schemaId: 0,
        op: 0,
        positionStart: 0,
        positionEnd: 0,
        seq: 0,
        epoch: 0,
        committedAt: 0,
        rest: 0,
      }
      return Array.from({ length: fetched.count }, (_, i): Told => {
        const at = partitionName(batch)
        const kind = readPrefix(fetched, i, prefix)
        const value = fetched.bytes.subarray(fetched.bounds[4 * i + 2], fetched.bounds[4 * i + 3])
        if (kind === 'control') return { at, control: decodeControl(value) }
        return { at, op: prefix.op, seq: prefix.seq, epoch: prefix.epoch }
      })
    })
}

test('opens with the epoch in the control topic, then in every data partition', () => {
  const [first, second, ...more] = bench().publisher.opening()
  assert.equal(more.length, 0)
  const epoch = { kind: 'epoch', epoch: 7 }
  assert.deepEqual(read(first ?? []), [{ at: 'shop.control/0', control: epoch }])
  assert.deepEqual(
    read(second ?? []),
    partitions.map((at) => ({ at: partitionName(at), control: epoch })),
  )
})

test('a watermark is written only after the round of what it vouches for has landed', () => {
  const { publisher, land } = bench()
  publisher.add(changes(16, insert(1), insert(2)))
  publisher.add(heartbeat(17))
  const first = publisher.take()
  assert.equal(first.proved, undefined)
  assert.ok(read(first.round).every(({ control }) => control === undefined))
  assert.equal(publisher.due, false)
  publisher.add(changes(32, insert(3)))
  land(first.round)
  assert.equal(publisher.due, true)
  const second = publisher.take()
  assert.equal(second.proved, positionOf(17))
  const watermark = read(second.round).find(({ control }) => control?.kind === 'watermark')?.control
  assert.ok(watermark?.kind === 'watermark')
  const sum = watermark.ends.reduce((all, { offset }) => all + offset, 0)
  assert.equal(sum, 100 * partitions.length + 2, 'the third row is not in the vector')
  land(second.round)
  assert.equal(publisher.due, false)
  assert.equal(publisher.idle, true)
})

test('H11: a watermark tells the newest place before its ends, of this capture or of one before', () => {
  const { publisher, land } = bench()
  const told = (round: readonly EncodedBatch[]): string | undefined => {
    const control = read(round).find((record) => record.control?.kind === 'watermark')?.control
    return control?.kind === 'watermark' ? control.published : undefined
  }
  const send = (): string | undefined => {
    const { round } = publisher.take()
    const published = told(round)
    land(round)
    return published
  }
  publisher.goOn(positionOf(4))
  publisher.add(changes(2, insert(1)))
  publisher.add(heartbeat(3))
  publisher.add(changes(8, insert(2)))
  send()
  assert.equal(send(), positionOf(8), 'it stands before the ends, though behind the watermark')
  publisher.add(heartbeat(9))
  publisher.add(changes(12, insert(3)))
  assert.equal(send(), positionOf(8), 'the round that it goes with is read')
  const other = bench()
  other.publisher.goOn(positionOf(40))
  other.publisher.add(heartbeat(9))
  const { round } = other.publisher.take()
  assert.equal(told(round), positionOf(40))
})

test('an idle source gets its watermark in the round that is sent for it', () => {
  const { publisher, land } = bench()
  publisher.add(heartbeat(17))
  const { round, proved } = publisher.take()
  assert.equal(proved, positionOf(17))
  land(round)
  assert.equal(publisher.idle, true)
})

test('vectors are full at first and once a minute, and hold what changed in between', () => {
  let now = 0
  const { publisher, land } = bench({ clock: () => now })
  const next = (n: number): ControlRecord | undefined => {
    publisher.add(heartbeat(n))
    const { round } = publisher.take()
    land(round)
    return read(round).find(({ control }) => control !== undefined)?.control
  }
  const told = (record: ControlRecord | undefined): unknown =>
    record?.kind === 'watermark' && { full: record.full, named: record.ends.map(partitionName) }
  assert.deepEqual(told(next(1)), { full: true, named: partitions.map(partitionName) })
  publisher.add(changes(16, { op: Op.insert, schema: pinned, row: ['1', 'a', 'b', '2'] }))
  land(publisher.take().round)
  assert.deepEqual(told(next(17)), { full: false, named: ['accounts/0'] })
  assert.deepEqual(told(next(18)), { full: false, named: ['accounts/0'] }, 'changed since the last full one')
  now = 60_000
  assert.deepEqual(told(next(19)), { full: true, named: partitions.map(partitionName) })
  assert.deepEqual(told(next(20)), { full: false, named: [] })
})

test('records that find no place in a round follow in the next, in order, before the watermark', () => {
  const { publisher, land } = bench({ limits: { roundBytes: 1 << 20, batchBytes: 400 } })
  const rows = Array.from({ length: 20 }, (_, id): Change => {
    return { op: Op.insert, schema: pinned, row: [String(id), 'x'.repeat(50), null, '1'] }
  })
  publisher.add(changes(16, ...rows))
  publisher.add(heartbeat(17))
  const seqs: (number | undefined)[] = []
  let proved: string | undefined
  let rounds = 0
  do {
    const taken = publisher.take()
    rounds++
    proved = taken.proved
    if (proved !== undefined) assert.equal(seqs.length, 20, 'all landed before')
    for (const { at, seq } of read(taken.round)) if (at === 'accounts/0') seqs.push(seq)
    land(taken.round)
  } while (publisher.due)
  assert.ok(rounds > 3)
  assert.equal(proved, positionOf(17))
  assert.deepEqual(
    seqs,
    rows.map((_, i) => 4 * i),
  )
})

test('a key change is a delete and an insert under numbers of their own', () => {
  const { publisher } = bench()
  const moved: Change = { op: Op.update, schema: table, old: ['1', null, null, null], row: ['2', 'a', null, '3'] }
  const kept: Change = { op: Op.update, schema: table, old: ['5', null, null, null], row: ['5', 'a', null, '3'] }
  publisher.add(changes(16, insert(1), moved, kept))
  const told = read(publisher.take().round).map(({ op, seq }) => `${seq} ${op}`)
  assert.deepEqual(told.sort(), [`0 ${Op.insert}`, `4 ${Op.delete}`, `5 ${Op.insert}`, `8 ${Op.update}`])
})

test('a key change without the whole row is a barrier over the partitions of both keys', () => {
  const { publisher } = bench()
  const list = Array.from({ length: 30 }, (_, n): Change => {
    return {
      op: Op.update,
      schema: table,
      old: [String(n), null, null, null],
      row: [String(n + 100), undefined, null, '3'],
    }
  })
  publisher.add(changes(16, ...list))
  const told = read(publisher.take().round)
  const sizes = new Set<number>()
  list.forEach((_, n) => {
    const records = told.filter(({ control }) => control?.kind === 'barrier' && control.mark.seq === 4 * n)
    const [first] = records
    assert.ok(first?.control?.kind === 'barrier' && first.control.effect.kind === 'rekey')
    assert.deepEqual(records.map(({ at }) => at).sort(), first.control.partitions.map(partitionName).sort())
    sizes.add(records.length)
  })
  assert.deepEqual(
    [...sizes].sort((a, b) => a - b),
    [1, 2],
  )
})

test('an effect goes into every partition of its tables', () => {
  const { publisher } = bench()
  const effect = {
    kind: 'truncate',
    tables: [table.table, pinned.table],
    cascade: false,
    restartCounters: false,
  } as const
  publisher.add({ kind: 'effect', effect, mark: { position: positionOf(16), seq: 4 }, committedAt: 3 })
  const told = read(publisher.take().round)
  assert.deepEqual(told.map(({ at }) => at).sort(), partitions.map(partitionName).sort())
})

test('schemas go out in the round of the first record that uses them, once', () => {
  const { publisher, land } = bench()
  publisher.add(changes(16, insert(1)))
  const first = publisher.take().round
  assert.ok(first.some(({ topic }) => topic === 'shop.schemas'))
  land(first)
  publisher.add(changes(32, insert(2)))
  assert.ok(!publisher.take().round.some(({ topic }) => topic === 'shop.schemas'))
})

test('an end that did not rise is another log', () => {
  const { publisher } = bench()
  publisher.add(changes(16, { op: Op.insert, schema: pinned, row: ['1', 'a', 'b', '2'] }))
  publisher.take()
  const isGap = (error: unknown): boolean => error instanceof Failure && error.code === 'LOG_GAP'
  assert.throws(() => publisher.landed([{ topic: 'accounts', partition: 0, offset: 1 }]), isGap)
})

test('changes of a table that is not captured stop the capture', () => {
  const { publisher } = bench()
  const foreign: Change = { op: Op.insert, schema: tableOf('foreign'), row: ['1', 'a', 'b', '2'] }
  const isChanged = (error: unknown): boolean => error instanceof Failure && error.code === 'TABLE_CHANGED'
  assert.throws(() => publisher.add(changes(16, foreign)), isChanged)
})
