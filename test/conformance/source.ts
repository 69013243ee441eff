import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import type { ChangeStream, Source, TableFilter } from '../../src/connector.ts'
import { comparePositions, origin, type Position, type TableSchema, heartbeatPrefix } from '../../src/model.ts'
import { Op, readImage } from '../../src/rows.ts'
import { readDigest } from '../../src/verify/digest.ts'
import { digestOf } from '../support/digest-oracle.ts'
import { flatten, type Flat } from '../support/flatten.ts'

/** What a row of the bed's table says: a key and a value. */
export type BedChange =
  | { readonly kind: 'insert'; readonly key: number; readonly value: string }
  | { readonly kind: 'update'; readonly key: number; readonly value: string; readonly newKey?: number }
  | { readonly kind: 'delete'; readonly key: number }
  | { readonly kind: 'truncate' }
/** A database of its own for one test, with one table of an integer key and a text. */
export interface SourceBed extends AsyncDisposable {
  /** One more handle for the same pipeline, over the same record. */
  open(): Promise<Source>
  readonly filter: TableFilter
  /** One transaction; resolves when it is committed. */
  commit(...changes: readonly BedChange[]): Promise<void>
}

const never = new AbortController().signal

/** What every source must do. `skip`: why it cannot run here. */
export function sourceConformance(name: string, make: () => Promise<SourceBed>, skip: string | false = false): void {
  describe(`source: ${name}`, { skip }, () => {
    it('gives a snapshot the first time, and changes that go on exactly where it ends', async () => {
      await using bed = await make()
      await using source = await bed.open()
      await bed.commit(insert(1), insert(2))
      const schema = await onlyTable(source, bed)
      await using snapshot = await source.retain([schema], never)
      assert.ok(snapshot)
      await bed.commit(insert(3))
      assert.deepEqual(await rowsAt(source, snapshot.id, schema), ['1=v1', '2=v2'])
      await using stream = await source.changes(snapshot.position, never)
      await finish(source)
      const changes = (await toEnd(stream)).map(short)
      assert.deepEqual(changes, ['0: insert 3=v3'])
      assert.equal(await source.retain([schema], never), undefined)
    })

    it('brings transactions whole and in commit order, their changes numbered from 0 in steps of 4', async () => {
      await using bed = await make()
      await using source = await bed.open()
      const { after } = await retained(source, bed)
      await bed.commit(insert(1), insert(2), { kind: 'update', key: 1, value: 'new' })
      await bed.commit({ kind: 'update', key: 2, value: 'moved', newKey: 5 }, { kind: 'delete', key: 1 })
      await bed.commit(insert(7), { kind: 'truncate' }, insert(8))
      await using stream = await source.changes(after, never)
      await finish(source)
      const all = await toEnd(stream)
      assert.deepEqual(all.map(short), [
        '0: insert 1=v1',
        '4: insert 2=v2',
        '8: update 1=new',
        '0: update 2 to 5=moved',
        '4: delete 1',
        '0: insert 7=v7',
        '4: truncate',
        '8: insert 8=v8',
      ])
      assert.equal(new Set(all.map(({ position }) => position)).size, 3)
      for (let i = 1; i < all.length; i++) assert.ok((all[i - 1]?.position ?? '') <= (all[i]?.position ?? ''))
    })

    it('begins behind the position it is given, and numbers what it sends again alike', async () => {
      await using bed = await make()
      await using source = await bed.open()
      const { after } = await retained(source, bed)
      for (let key = 1; key <= 4; key++) await bed.commit(insert(key), insert(10 * key))
      await finish(source)
      const first = await using1(await source.changes(after, never), toEnd)
      const again = await using1(await source.changes(after, never), toEnd)
      assert.deepEqual(again, first)
      const middle = (first[3]?.position ?? origin) as Position
      const rest = await using1(await source.changes(middle, never), toEnd)
      assert.deepEqual(rest, first.slice(4))
    })

    it('keeps what was not acknowledged, and forgets nothing that lies behind an acknowledged place', async () => {
      await using bed = await make()
      await using source = await bed.open()
      const { after } = await retained(source, bed)
      await bed.commit(insert(1))
      await bed.commit(insert(2))
      await finish(source)
      const stream = await source.changes(after, never)
      const all = await toEnd(stream)
      stream.ack((all[0]?.position ?? origin) as Position)
      await stream[Symbol.asyncDispose]()
      await using other = await bed.open()
      const rest = await using1(await other.changes((all[0]?.position ?? origin) as Position, never), toEnd)
      assert.deepEqual(rest.map(short), ['0: insert 2=v2'])
    })

    it('passes messages at their place, and health tells a place behind every commit', async () => {
      await using bed = await make()
      await using source = await bed.open()
      const { after } = await retained(source, bed)
      await bed.commit(insert(1))
      await source.emit('other', Buffer.from('between'), never)
      await bed.commit(insert(2))
      const { position } = await source.health(never)
      await using stream = await source.changes(after, never)
      await finish(source)
      const all = await collect(stream, (flat) => flat.kind === 'message' && flat.prefix === heartbeatPrefix)
      assert.deepEqual(
        all.map((flat) => (flat.kind === 'message' ? flat.prefix : short(flat))),
        ['0: insert 1=v1', 'other', '0: insert 2=v2', heartbeatPrefix],
      )
      const places = all.map((flat) => flat.position as Position)
      for (let i = 1; i < places.length; i++) {
        assert.ok(comparePositions(places[i - 1] ?? origin, places[i] ?? origin) < 0)
      }
      assert.ok(comparePositions(places[2] ?? origin, position) <= 0)
      assert.ok(comparePositions(places[2] ?? origin, await source.visible(never)) <= 0)
    })

    it('gives later snapshots that hold exactly the changes up to their position', async () => {
      await using bed = await make()
      await using source = await bed.open()
      const { after, schema } = await retained(source, bed)
      let key = 0
      let writing = true
      const writer = (async () => {
        while (writing) await bed.commit(insert(++key))
      })()
      await using snapshot = await source.snapshot(never)
      writing = false
      await writer
      await finish(source)
      const rows = await rowsAt(source, snapshot.id, schema)
      const all = await using1(await source.changes(after, never), toEnd)
      if (!snapshot.exact) return
      const before = all.filter(({ position }) => comparePositions(position as Position, snapshot.position) <= 0)
      assert.deepEqual(
        before.map((flat) => short(flat).replace('0: insert ', '')),
        rows,
      )
    })

    it('digests rows as specified, whatever their order, and ranges so that they add up', async () => {
      await using bed = await make()
      await using source = await bed.open()
      const keys = Array.from({ length: 40 }, (_, i) => (i * 17) % 40)
      await bed.commit(...keys.map(insert))
      await bed.commit({ kind: 'delete', key: 5 }, { kind: 'update', key: 6, value: '' })
      const schema = await onlyTable(source, bed)
      await using reader = await source.reader('now', never)
      const whole = await readDigest(reader, schema, { table: schema.table, estimatedRows: 40 }, never)
      const rows = keys.filter((key) => key !== 5).map((key) => [String(key), key === 6 ? '' : `v${key}`])
      assert.deepEqual(whole, digestOf(rows))
      let [count, first, second] = [0, 0n, 0n]
      for (const range of await reader.ranges(schema, 10, never)) {
        const part = await readDigest(reader, schema, range, never)
        count += part.rows
        first += part.sums[0]
        second += part.sums[1]
      }
      assert.deepEqual({ rows: count, sums: [BigInt.asUintN(64, first), BigInt.asUintN(64, second)] }, whole)
      await bed.commit({ kind: 'update', key: 6, value: ' ' })
      const other = await readDigest(reader, schema, { table: schema.table, estimatedRows: 40 }, never)
      assert.equal(other.rows, whole.rows)
      assert.ok(other.sums[0] !== whole.sums[0] && other.sums[1] !== whole.sums[1])
    })

    it('lets a successor take over, whose opening ends the former stream', async () => {
      await using bed = await make()
      await using first = await bed.open()
      const { after } = await retained(first, bed)
      const former = await first.changes(after, never)
      const pulled = collect(former, () => false)
      const refused = assert.rejects(pulled)
      await using second = await bed.open()
      await using stream = await second.changes(after, never)
      await refused
      await former[Symbol.asyncDispose]()
      await bed.commit(insert(1))
      await finish(second)
      assert.deepEqual((await toEnd(stream)).map(short), ['0: insert 1=v1'])
    })

    it('ends a pull when the signal aborts', async () => {
      await using bed = await make()
      await using source = await bed.open()
      const { after } = await retained(source, bed)
      const stop = new AbortController()
      await using stream = await source.changes(after, stop.signal)
      const pulled = collect(stream, () => false)
      stop.abort(new Error('enough'))
      await assert.rejects(pulled, /enough/)
    })

    it('passes over a table that was left out, its earlier changes too, and keeps it from where it is named again', async () => {
      await using bed = await make()
      await using source = await bed.open()
      const { schema, after } = await retained(source, bed)
      await bed.commit(insert(1), insert(2))
      assert.equal(await source.retain([], never), undefined)
      await bed.commit(insert(3))
      await finish(source)
      assert.deepEqual(await using1(await source.changes(after, never), toEnd), [])
      assert.equal(await source.retain([], never), undefined)
      assert.equal(await source.retain([schema], never), undefined)
      await bed.commit(insert(4))
      await finish(source)
      await using stream = await source.changes(after, never)
      await toEnd(stream)
      assert.deepEqual((await toEnd(stream)).map(short), ['0: insert 4=v4'])
    })

    it('undoes what it retained, and begins anew', async () => {
      await using bed = await make()
      await using source = await bed.open()
      const { schema, after } = await retained(source, bed)
      await source.release(never)
      await assert.rejects(source.changes(after, never), { code: 'SLOT_LOST' })
      await source.release(never)
      await bed.commit(insert(1))
      await using snapshot = await source.retain([schema], never)
      assert.ok(snapshot)
      assert.deepEqual(await rowsAt(source, snapshot.id, schema), ['1=v1'])
    })
  })
}

function insert(key: number): BedChange {
  return { kind: 'insert', key, value: `v${key}` }
}

async function onlyTable(source: Source, bed: SourceBed): Promise<TableSchema> {
  const [schema, more] = await source.tables(bed.filter, never)
  assert.ok(schema && !more)
  return schema
}

async function retained(source: Source, bed: SourceBed): Promise<{ after: Position; schema: TableSchema }> {
  const schema = await onlyTable(source, bed)
  const snapshot = await source.retain([schema], never)
  assert.ok(snapshot)
  await snapshot[Symbol.asyncDispose]()
  return { after: snapshot.position, schema }
}

/** Writes the message that `toEnd` reads up to. */
async function finish(source: Source): Promise<void> {
  await source.emit(heartbeatPrefix, Buffer.from('end'), never)
}

async function toEnd(stream: ChangeStream): Promise<Flat[]> {
  const all = await collect(stream, (flat) => flat.kind === 'message' && flat.content === 'end')
  return all.filter((flat) => flat.kind !== 'message')
}

async function collect(stream: ChangeStream, last: (flat: Flat) => boolean): Promise<Flat[]> {
  const all: Flat[] = []
  const iterator = stream[Symbol.asyncIterator]()
  for (;;) {
    const { value, done } = await iterator.next()
    if (done) throw new Error('the stream ended')
    for (const flat of flatten(value)) {
      all.push(flat)
      if (last(flat)) return all
    }
  }
}

async function using1<T>(stream: ChangeStream, work: (stream: ChangeStream) => Promise<T>): Promise<T> {
  await using held = stream
  return await work(held)
}

function short(flat: Flat): string {
  if (flat.kind === 'message') return 'message'
  if (flat.kind === 'effect') return `${flat.seq}: ${flat.effect.kind}`
  const [key, value] = flat.new
  const old = flat.old[0]
  switch (flat.op) {
    case Op.insert:
      return `${flat.seq}: insert ${key}=${value}`
    case Op.update:
      return `${flat.seq}: update ${old === undefined || old === key ? '' : `${old} to `}${key}=${value}`
    default:
      return `${flat.seq}: delete ${old}`
  }
}

async function rowsAt(source: Source, at: string, schema: TableSchema): Promise<readonly string[]> {
  await using reader = await source.reader(at, never)
  const rows: string[] = []
  for await (const { bytes, starts, count } of reader.rows(schema, { table: schema.table, estimatedRows: 0 }, never)) {
    for (let i = 0; i < count; i++) {
      const [key, value] = readImage(bytes, starts[i] ?? 0, starts[i + 1] ?? 0)
      rows.push(`${key ? Buffer.from(key.bytes) : ''}=${value ? Buffer.from(value.bytes) : ''}`)
    }
  }
  return rows.toSorted((a, b) => Number.parseInt(a) - Number.parseInt(b))
}
