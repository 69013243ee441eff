import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import type { Lane, Sink } from '../../src/connector.ts'
import { Failure, type ErrorCode } from '../../src/errors.ts'
import type {
  Advance,
  Barrier,
  Checkpoint,
  Chunk,
  Effect,
  Position,
  TableId,
  TableSchema,
  TopicPartition,
} from '../../src/model.ts'
import type { LaneBatch, Mending, RowGroup, Rows } from '../../src/rows.ts'
import { changesOf, imagesOf, type TestChange, type Value } from '../support/images.ts'

/** An empty target that has the tables asked for, and its own word on what is in them. */
export interface Target extends AsyncDisposable {
  readonly sink: Sink
  /** Text of every cell, by key or, without one, in any order. */
  rows(table: TableId): Promise<readonly (readonly (string | null)[])[]>
}

const never = new AbortController().signal
const column = (name: string, type: string, form: TableSchema['columns'][number]['form'], nullable = true) => ({
  name,
  type,
  form,
  nullable,
})
const base = { version: 1, before: 'key', shape: 'columns', pinned: false } as const
export const items: TableSchema = {
  ...base,
  table: { schema: 'public', name: 'items' },
  key: [0],
  columns: [
    column('id', 'bigint', 'int64', false),
    column('name', 'text', 'text', false),
    column('note', 'text', 'text'),
    column('amount', 'integer', 'int32'),
  ],
}
/** The key's order is not the columns'. */
const pairs: TableSchema = {
  ...base,
  table: { schema: 'public', name: 'Pairs "of" two' },
  key: [2, 0],
  columns: [column('b', 'text', 'text', false), column('v', 'text', 'text'), column('a', 'integer', 'int32', false)],
}
export const notes: TableSchema = {
  ...base,
  table: { schema: 'public', name: 'notes' },
  key: [],
  before: 'row',
  pinned: true,
  columns: [column('day', 'integer', 'int32'), column('text', 'text', 'text')],
}
const tables = [items, pairs, notes]

const one: TopicPartition = { topic: 't', partition: 0 }
const two: TopicPartition = { topic: 't', partition: 1 }
const three: TopicPartition = { topic: 't', partition: 2 }
const position = (n: number): Position => String(n).padStart(16, '0') as Position

export function advance(from: Checkpoint, by = 1, at: Position = position(from.offset + by)): Advance {
  return { from: from.offset, to: { ...from, offset: from.offset + by, mark: { position: at, seq: 0 } } }
}
const empty: LaneBatch = {
  groups: [],
  inOrder: undefined,
  mayMiss: false,
  ordered: () => changesOf([], position(1)),
}
export function group(
  schema: TableSchema,
  kind: RowGroup['kind'],
  rows: readonly (readonly Value[])[],
  mayMiss = false,
): RowGroup {
  const columns =
    kind === 'delete' ? schema.key : schema.columns.flatMap((_, c) => (rows[0]?.[c] === undefined ? [] : [c]))
  return { schema, kind, mayMiss, columns, rows: imagesOf(schema, rows) }
}
export function batch(groups: readonly RowGroup[], changes: readonly TestChange[] = []): LaneBatch {
  return { ...empty, groups, ordered: () => changesOf(changes, position(9)) }
}
export function inOrder(changes: readonly TestChange[], mayMiss = false): LaneBatch {
  const all = changesOf(changes, position(9))
  return { groups: [], inOrder: all, mayMiss, ordered: () => all }
}
async function fails(work: Promise<unknown>, code: ErrorCode): Promise<Failure> {
  let found: unknown
  await assert.rejects(work, (error) => {
    found = error
    return error instanceof Failure && error.code === code
  })
  assert.ok(found instanceof Failure)
  return found
}

/** What every sink must do. `open`: a fresh target with these tables. */
export function sinkConformance(
  name: string,
  open: (tables: readonly TableSchema[]) => Promise<Target>,
  skip: string | false = false,
): void {
  describe(`sink: ${name}`, { skip }, () => {
    type Open = Target & { lane(): Promise<Lane>; claimed(...at: TopicPartition[]): Promise<[Lane, ...Checkpoint[]]> }
    async function ready(live = true): Promise<Open> {
      const target = await open(tables)
      const { sink } = target
      const lanes: Lane[] = []
      await sink.prepare(tables, 'before', undefined, never)
      for (const { table } of tables)
        await sink.setCopies([{ table, partitions: [one, two, three], snapshot: position(0), live }], 1, never)
      const lane = async (): Promise<Lane> => {
        const made = await sink.lane(never)
        lanes.push(made)
        return made
      }
      return {
        sink,
        rows: async (table) => await target.rows(table),
        lane,
        async claimed(...at) {
          const made = await lane()
          return [made, ...(await made.claim(at, 1, never))]
        },
        async [Symbol.asyncDispose]() {
          for (const made of lanes) await made[Symbol.asyncDispose]()
          await target[Symbol.asyncDispose]()
        },
      }
    }
    const at = async (sink: Sink, partition: TopicPartition): Promise<Checkpoint> => {
      const found = (await sink.checkpoints(never)).find(
        (row) => row.topic === partition.topic && row.partition === partition.partition,
      )
      assert.ok(found)
      return found
    }

    it('answers on a target it never wrote to', async () => {
      await using target = await open(tables)
      assert.deepEqual(await target.sink.checkpoints(never), [])
      assert.deepEqual(await target.sink.copies(never), [])
      await target.sink.prepare(tables, 'before', undefined, never)
      await target.sink.prepare(tables, 'before', undefined, never)
      assert.deepEqual(await target.sink.copies(never), [])
    })

    it('holds a table that is copied and lets a live one go', async () => {
      await using target = await open(tables)
      const { sink } = target
      await sink.prepare(tables, 'before', undefined, never)
      const copy = { table: items.table, partitions: [one], snapshot: '' as Position, live: false }
      await sink.setCopies([copy], 1, never)
      assert.equal((await at(sink, one)).hold, '')
      await sink.setCopies([{ ...copy, snapshot: position(5) }], 2, never)
      assert.equal((await at(sink, one)).hold, position(5))
      await fails(sink.setCopies([copy], 1, never), 'FENCED')
      await sink.setCopies([{ ...copy, snapshot: position(5), live: true }], 2, never)
      const { hold, loose } = await at(sink, one)
      assert.deepEqual([hold, loose], [undefined, position(5)])
      assert.deepEqual(await sink.copies(never), [{ ...copy, snapshot: position(5), live: true, done: [], loaded: [] }])
    })

    it('holds many tables at once, each as it is said, or none of them', async () => {
      await using target = await open(tables)
      const { sink } = target
      await sink.prepare(tables, 'before', undefined, never)
      const copies = [one, two].map((at, i) => {
        return {
          table: { schema: 'public', name: `many ${i}` },
          partitions: [at],
          snapshot: '' as Position,
          live: false,
        }
      })
      const [first, second] = copies
      assert.ok(first && second)
      await sink.setCopies(copies, 1, never)
      await sink.setCopies([second], 2, never)
      await fails(sink.setCopies([{ ...first, snapshot: position(5) }, second], 1, never), 'FENCED')
      assert.deepEqual([(await at(sink, one)).hold, (await at(sink, two)).hold], ['', ''])
      const moved = [
        { ...first, snapshot: position(7), live: true, rows: 3 },
        { ...second, snapshot: position(6) },
      ]
      await sink.setCopies(moved, 2, never)
      const found = [await at(sink, one), await at(sink, two)]
      assert.deepEqual(
        found.map(({ hold, loose }) => [hold, loose]),
        [
          [undefined, position(7)],
          [position(6), position(6)],
        ],
      )
      assert.deepEqual(
        await sink.copies(never),
        moved.map((copy) => ({ ...copy, done: [], loaded: [] })),
      )
    })

    it('writes rows and checkpoint together', async () => {
      await using target = await ready()
      const [lane, from] = await target.claimed(one)
      assert.ok(from)
      const rows = [
        group(items, 'upsert', [
          ['1', 'a', null, '7'],
          ['2', 'b', 'x', null],
        ]),
      ]
      const step = advance(from, 3)
      assert.deepEqual(await lane.apply(batch(rows), [step], never), [])
      assert.deepEqual(await target.rows(items.table), [
        ['1', 'a', null, '7'],
        ['2', 'b', 'x', null],
      ])
      assert.deepEqual(await at(target.sink, one), step.to)
    })

    it('updates present columns only, deletes, and folds nothing itself', async () => {
      await using target = await ready()
      const [lane, from] = await target.claimed(one)
      assert.ok(from)
      const first = advance(from)
      const rows = [
        ['1', 'a', 'n', '7'],
        ['2', 'b', 'x', null],
        ['3', 'c', null, '0'],
      ]
      const doubles = [
        ['p', 'q', '1'],
        ['p', null, '2'],
        ['r', 's', '1'],
      ]
      await lane.apply(batch([group(items, 'upsert', rows), group(pairs, 'upsert', doubles)]), [first], never)
      const changes = [
        group(items, 'delete', [['2', null, null, null]]),
        group(items, 'update', [
          ['1', 'A', undefined, undefined],
          ['3', 'C', undefined, undefined],
        ]),
        group(items, 'upsert', [['4', 'd', null, null]]),
        group(pairs, 'delete', [['p', null, '1']]),
        group(pairs, 'update', [['r', 'S', '1']]),
      ]
      assert.deepEqual(await lane.apply(batch(changes), [advance(first.to)], never), [])
      assert.deepEqual(await target.rows(items.table), [
        ['1', 'A', 'n', '7'],
        ['3', 'C', null, '0'],
        ['4', 'd', null, null],
      ])
      assert.deepEqual(await target.rows(pairs.table), [
        ['r', 'S', '1'],
        ['p', null, '2'],
      ])
    })

    it('stops at an update without a row, and writes nothing', async () => {
      await using target = await ready()
      const [lane, from] = await target.claimed(one)
      assert.ok(from)
      const partial: Value[] = ['1', 'A', undefined, undefined]
      const changes: TestChange[] = [
        { schema: items, op: 'insert', next: ['2', 'b', null, null] },
        { schema: items, op: 'update', next: partial },
      ]
      const groups = [group(items, 'update', [partial]), group(items, 'upsert', [['2', 'b', null, null]])]
      const failure = await fails(lane.apply(batch(groups, changes), [advance(from)], never), 'TARGET_DRIFTED')
      assert.doesNotMatch(failure.message, /'A'|"A"/)
      assert.deepEqual(await target.rows(items.table), [])
      assert.equal((await at(target.sink, one)).offset, 0)
      const loose = [group(items, 'update', [partial], true), group(items, 'upsert', [['2', 'b', null, null]])]
      assert.deepEqual(await lane.apply(batch(loose), [advance(from)], never), [])
      assert.deepEqual(await target.rows(items.table), [['2', 'b', null, null]])
    })

    it('applies tables without a key in order, one of equal rows at a time', async () => {
      await using target = await ready()
      const [lane, from] = await target.claimed(one)
      assert.ok(from)
      const row = (day: string | null, text: string | null): Value[] => [day, text]
      const changes: TestChange[] = [
        { schema: notes, op: 'insert', next: row('1', 'a') },
        { schema: notes, op: 'insert', next: row('1', 'a') },
        { schema: notes, op: 'insert', next: row(null, null) },
        { schema: notes, op: 'update', old: row('1', 'a'), next: row('1', 'b') },
        { schema: notes, op: 'update', old: row(null, null), next: row(null, 'c') },
        { schema: notes, op: 'insert', next: row('2', 'd') },
        { schema: notes, op: 'delete', old: row('1', 'a') },
      ]
      const first = advance(from)
      assert.deepEqual(await lane.apply(inOrder(changes), [first], never), [])
      const sorted = async (): Promise<string[]> => (await target.rows(notes.table)).map((cells) => cells.join()).sort()
      assert.deepEqual(await sorted(), [',c', '1,b', '2,d'])
      const gone: TestChange[] = [{ schema: notes, op: 'delete', old: row('9', 'z') }]
      await fails(lane.apply(inOrder(gone), [advance(first.to)], never), 'TARGET_DRIFTED')
      assert.deepEqual(await lane.apply(inOrder(gone, true), [advance(first.to)], never), [])
    })

    it('returns a partition that another lane has taken over, and writes nothing', async () => {
      await using target = await ready()
      const [former, a, b] = await target.claimed(one, two)
      assert.ok(a && b)
      const [successor] = await target.claimed(two)
      const rows = batch([group(items, 'upsert', [['1', 'zombie', null, null]])])
      assert.deepEqual(await former.apply(rows, [advance(a), advance(b)], never), [two])
      assert.deepEqual(await target.rows(items.table), [])
      assert.equal((await at(target.sink, one)).offset, 0)
      assert.deepEqual(await former.apply(rows, [advance(a)], never), [])
      const mine = await at(target.sink, two)
      assert.deepEqual(await successor.apply(batch([]), [advance(mine)], never), [])
    })

    it('refuses a claim of an older generation', async () => {
      await using target = await ready()
      const lane = await target.lane()
      await lane.claim([one], 5, never)
      await fails((await target.lane()).claim([one], 4, never), 'FENCED')
      assert.equal((await (await target.lane()).claim([one], 5, never)).length, 1)
    })

    it('returns a partition whose offset, hold or loose is another', async () => {
      await using target = await ready()
      const [lane, from] = await target.claimed(one)
      assert.ok(from)
      const late = { ...advance(from), from: 1 }
      assert.deepEqual(await lane.apply(empty, [late], never), [one])
      const copy = { table: items.table, partitions: [one], snapshot: position(3), live: false }
      await target.sink.setCopies([copy], 1, never)
      assert.deepEqual(await lane.apply(empty, [advance(from)], never), [one])
      assert.deepEqual(await lane.apply(empty, [advance(await at(target.sink, one))], never), [])
    })

    const barrier = (effect: Effect, n = 7): Barrier => ({
      kind: 'barrier',
      mark: { position: position(n), seq: 0 },
      committedAt: 0,
      epoch: 1,
      partitions: [one, two],
      effect,
    })
    const truncate: Effect = {
      kind: 'truncate',
      tables: [items.table, pairs.table],
      cascade: false,
      restartCounters: true,
    }

    it('performs a barrier once, when the last partition has come', async () => {
      await using target = await ready()
      const [first, a] = await target.claimed(one)
      const [second, b] = await target.claimed(two)
      assert.ok(a && b)
      const step = advance(a)
      await first.apply(batch([group(items, 'upsert', [['1', 'a', null, null]])]), [step], never)
      const here = barrier(truncate)
      const onward = advance(step.to, 1, here.mark.position)
      const other = advance(b, 1, here.mark.position)
      assert.equal(await first.arrive(here, onward, never), 'waiting')
      assert.equal(await first.arrive(here, onward, never), 'waiting')
      assert.equal((await at(target.sink, one)).offset, 1)
      assert.equal((await target.rows(items.table)).length, 1)
      assert.equal(await second.arrive(here, other, never), 'done')
      assert.deepEqual(await target.rows(items.table), [])
      assert.equal((await at(target.sink, one)).offset, 1)
      const next = advance(other.to)
      await second.apply(batch([group(items, 'upsert', [['2', 'after', null, null]])]), [next], never)
      assert.equal(await first.arrive(here, onward, never), 'done')
      assert.equal(await first.arrive(here, onward, never), 'done')
      assert.equal((await at(target.sink, one)).offset, 2)
      assert.deepEqual(await target.rows(items.table), [['2', 'after', null, null]])
    })

    it('counts two partitions that come at once', async () => {
      await using target = await ready()
      const [first, a] = await target.claimed(one)
      const [second, b] = await target.claimed(two)
      const [third, c] = await target.claimed(three)
      assert.ok(a && b && c)
      for (let n = 1, [x, y, z] = [a, b, c]; n <= 8; n++) {
        const here: Barrier = { ...barrier(truncate, n), partitions: [one, two, three] }
        const [p, q, r] = [x, y, z].map((from) => advance(from, 1, here.mark.position))
        assert.ok(p && q && r)
        assert.equal(await third.arrive(here, r, never), 'waiting')
        const answers = await Promise.all([first.arrive(here, p, never), second.arrive(here, q, never)])
        assert.ok(answers.includes('done') && !answers.includes('lost'), answers.join())
        assert.equal(await first.arrive(here, p, never), 'done')
        assert.equal(await second.arrive(here, q, never), 'done')
        assert.equal(await third.arrive(here, r, never), 'done')
        ;[x, y, z] = [p.to, q.to, r.to]
      }
    })

    it('leaves a table out: nothing waits for it or touches it, and taken in again it begins where it is told', async () => {
      await using target = await ready()
      const { sink } = target
      await sink.leave(
        tables.map(({ table }) => table),
        1,
        never,
      )
      const copies = [items, notes].map(({ table }, i) => {
        return { table, partitions: [i === 0 ? one : two], snapshot: position(0), live: true }
      })
      await sink.setCopies(copies, 1, never)
      const [first, a] = await target.claimed(one)
      const [second, b] = await target.claimed(two)
      assert.ok(a && b && copies[1])
      const step = advance(a)
      await first.apply(batch([group(items, 'upsert', [['1', 'a', null, null]])]), [step], never)
      const note = { op: 'insert', schema: notes, next: ['1', 'stays'] } as const
      await second.apply(inOrder([note]), [advance(b)], never)
      await fails(sink.leave([items.table, notes.table], 0, never), 'FENCED')
      await sink.leave([notes.table], 1, never)
      await sink.leave([notes.table], 1, never)
      assert.deepEqual(
        (await sink.copies(never)).map(({ table }) => table),
        [items.table],
      )
      assert.deepEqual(
        (await sink.checkpoints(never)).map(({ partition }) => partition),
        [one.partition],
      )
      assert.deepEqual(await second.apply(inOrder([note]), [advance(advance(b).to)], never), [two])
      const both: Effect = { ...truncate, tables: [items.table, notes.table] }
      const here = { ...barrier(both, 5), partitions: [one, two] }
      const onward = advance(step.to, 1, here.mark.position)
      assert.equal(await first.arrive(here, onward, never), 'done')
      assert.deepEqual(await target.rows(items.table), [])
      assert.deepEqual(await target.rows(notes.table), [['1', 'stays']])

      const start = { ends: [{ ...two, offset: 7 }], position: position(8), epoch: 3 }
      await sink.setCopies([{ ...copies[1], snapshot: position(0), live: false }], 1, never, start)
      const { offset, mark, hold, captureEpoch } = await at(sink, two)
      assert.deepEqual([offset, mark.position, hold, captureEpoch], [7, position(8), position(0), 3])
      const old = { ...barrier(both, 8), partitions: [one, two] }
      const further = advance(onward.to, 1, old.mark.position)
      assert.equal(await first.arrive(old, further, never), 'done')
      const next = { ...barrier(both, 9), partitions: [one, two] }
      assert.equal(await first.arrive(next, advance(further.to, 1, next.mark.position), never), 'waiting')
    })

    it('does not count the arrival of a former lane', async () => {
      await using target = await ready()
      const [former, a] = await target.claimed(one)
      const [successor, b] = await target.claimed(one)
      assert.ok(a && b)
      const here = { ...barrier(truncate), partitions: [one] }
      assert.equal(await former.arrive(here, advance(a, 1, here.mark.position), never), 'lost')
      assert.equal(await successor.arrive(here, advance(b, 1, here.mark.position), never), 'done')
    })

    it('moves a row to a new key, whole or with what came', async () => {
      await using target = await ready()
      const [lane, from] = await target.claimed(one)
      assert.ok(from)
      const rows = [
        ['1', 'a', 'long', '7'],
        ['2', 'b', 'kept', '8'],
        ['3', 'old', 'x', '1'],
        ['4', 'new', 'stays', '2'],
      ]
      let step = advance(from)
      await lane.apply(batch([group(items, 'upsert', rows)]), [step], never)
      const image = (values: readonly Value[]): Uint8Array => imagesOf(items, [values]).bytes
      const move = async (n: number, oldKey: Value[], next: Value[]): Promise<string> => {
        const effect: Effect = { kind: 'rekey', schema: items, oldKey: image(oldKey), newImage: image(next) }
        const here = { ...barrier(effect, 10 + n), partitions: [one] }
        const to = advance(step.to, 1, here.mark.position)
        const answer = await lane.arrive(here, to, never)
        step = to
        return answer
      }
      assert.equal(await move(1, ['1', null, null, null], ['9', 'A', undefined, null]), 'done')
      assert.equal(await move(2, ['3', null, null, null], ['4', 'newer', undefined, '3']), 'done')
      assert.deepEqual(await target.rows(items.table), [
        ['2', 'b', 'kept', '8'],
        ['4', 'newer', 'stays', '3'],
        ['9', 'A', 'long', null],
      ])
      const stand = step
      await fails(move(3, ['50', null, null, null], ['51', 'A', undefined, null]), 'TARGET_DRIFTED')
      assert.equal((await at(target.sink, one)).offset, stand.to.offset)
    })

    const chunk: Chunk = { table: items.table, id: 'c1', snapshot: position(4), replace: false, estimatedRows: 3 }
    const copying = { table: items.table, partitions: [one], snapshot: position(4), live: false }
    async function* of(...all: Rows[]): AsyncIterable<Rows> {
      yield* all
    }
    const data = (rows: readonly (readonly Value[])[]) =>
      ({ kind: 'rows', batches: of(imagesOf(items, rows)) }) as const

    it('loads a chunk once and marks it done', async () => {
      await using target = await ready()
      await target.sink.setCopies([copying], 1, never)
      const lane = await target.lane()
      assert.equal(
        await lane.load(
          items,
          chunk,
          data([
            ['1', 'a', null, '1'],
            ['2', 'b', 'x', null],
          ]),
          1,
          never,
        ),
        2,
      )
      assert.equal(await lane.load(items, chunk, data([['3', 'c', null, '1']]), 2, never), undefined)
      assert.deepEqual(await target.rows(items.table), [
        ['1', 'a', null, '1'],
        ['2', 'b', 'x', null],
      ])
      const copies = await target.sink.copies(never)
      assert.deepEqual(copies.find(({ table }) => table.name === 'items')?.done, ['c1'])
      const keyless = { ...copying, table: notes.table }
      await target.sink.setCopies([keyless], 1, never)
      const rows = imagesOf(notes, [
        ['1', 'a'],
        ['1', 'a'],
      ])
      const whole = { ...chunk, table: notes.table }
      assert.equal(await lane.load(notes, whole, { kind: 'rows', batches: of(rows) }, 1, never), 2)
      assert.equal((await target.rows(notes.table)).length, 2)
    })

    it('refuses a chunk of another snapshot or an older lease', async () => {
      await using target = await ready()
      await target.sink.setCopies([copying], 1, never)
      const lane = await target.lane()
      const rows = [['1', 'a', null, '1']]
      await fails(lane.load(items, { ...chunk, snapshot: position(3) }, data(rows), 5, never), 'SNAPSHOT_LOST')
      await target.sink.setCopies([{ ...copying, snapshot: position(6) }], 1, never)
      await fails((await target.lane()).load(items, chunk, data(rows), 5, never), 'SNAPSHOT_LOST')
      assert.deepEqual(await target.rows(items.table), [])
    })

    it('takes a chunk under a lease that began anew, once the copy moved to another snapshot', async () => {
      await using target = await ready()
      await target.sink.setCopies([copying], 1, never)
      const broken = imagesOf(items, [['1', 'a', null, '1']])
      async function* breaking(): AsyncIterable<Rows> {
        yield broken
        throw new Error('the source is gone')
      }
      await assert.rejects((await target.lane()).load(items, chunk, { kind: 'rows', batches: breaking() }, 3, never))
      const moved = { ...copying, snapshot: position(6) }
      await target.sink.setCopies([moved], 1, never)
      const again = { ...chunk, snapshot: moved.snapshot }
      assert.equal(await (await target.lane()).load(items, again, data([['2', 'b', null, null]]), 1, never), 1)
    })

    it('loads nothing when its rows break off', async () => {
      await using target = await ready()
      await target.sink.setCopies([copying], 1, never)
      async function* broken(): AsyncIterable<Rows> {
        yield imagesOf(items, [['1', 'a', null, '1']])
        throw new Error('the source is gone')
      }
      await assert.rejects((await target.lane()).load(items, chunk, { kind: 'rows', batches: broken() }, 1, never))
      assert.deepEqual(await target.rows(items.table), [])
      assert.equal(await (await target.lane()).load(items, chunk, data([['2', 'b', null, null]]), 1, never), 1)
    })

    it('waits for no chunk when the copy moves to another snapshot, and the chunk fails', async () => {
      await using target = await ready()
      await target.sink.setCopies([copying], 1, never)
      async function* moving(): AsyncIterable<Rows> {
        yield imagesOf(items, [['1', 'a', null, '1']])
        await target.sink.setCopies([{ ...copying, snapshot: position(6) }], 1, never)
        yield imagesOf(items, [['2', 'b', null, '1']])
      }
      const lane = await target.lane()
      await fails(lane.load(items, chunk, { kind: 'rows', batches: moving() }, 1, never), 'SNAPSHOT_LOST')
      assert.deepEqual(await target.rows(items.table), [])
    })

    it('replaces exactly the range', async () => {
      await using target = await ready()
      const [lane, from] = await target.claimed(one)
      assert.ok(from)
      const old = ['1', '2', '5', '10', '11'].map((id) => [id, 'old', null, null])
      await lane.apply(batch([group(items, 'upsert', old)]), [advance(from)], never)
      await target.sink.setCopies([copying], 1, never)
      const range = { ...chunk, from: '["2"]', to: '["11"]', replace: true }
      assert.equal(
        await lane.load(
          items,
          range,
          data([
            ['3', 'new', null, null],
            ['10', 'new', null, null],
          ]),
          1,
          never,
        ),
        2,
      )
      const found = (await target.rows(items.table)).map(([id, name]) => `${id} ${name}`)
      assert.deepEqual(found, ['1 old', '3 new', '10 new', '11 old'])
    })

    it('forgets the chunks of the last copy when another begins', async () => {
      await using target = await ready()
      await target.sink.setCopies([copying], 1, never)
      await (await target.lane()).load(items, chunk, data([['1', 'a', null, '1']]), 1, never)
      const done = async () => (await target.sink.copies(never)).find(({ table }) => table.name === 'items')?.done
      await target.sink.setCopies([{ ...copying, snapshot: position(5) }], 1, never)
      assert.deepEqual(await done(), ['c1'])
      await target.sink.setCopies([{ ...copying, snapshot: position(5), live: true }], 1, never)
      await target.sink.setCopies([{ ...copying, snapshot: '' as Position }], 1, never)
      assert.deepEqual(await done(), [])
    })

    it('forgets the chunks of a table that is live, and keeps how many rows they were', async () => {
      await using target = await ready()
      const { sink } = target
      await sink.setCopies([copying], 1, never)
      const lane = await target.lane()
      await lane.load(items, chunk, data([['1', 'a', null, '1']]), 1, never)
      const copy = async () => (await sink.copies(never)).find(({ table }) => table.name === 'items')
      const { done, loaded, rows } = (await copy()) ?? {}
      assert.deepEqual([done, loaded, rows], [['c1'], [1], undefined])
      await fails(sink.setCopies([{ ...copying, live: true, rows: 7 }], 0, never), 'FENCED')
      assert.deepEqual((await copy())?.done, ['c1'])
      for (let times = 0; times < 2; times++) {
        await sink.setCopies([{ ...copying, live: true, rows: 1 }], 1, never)
        const now = await copy()
        assert.deepEqual([now?.done, now?.loaded, now?.rows], [[], [], 1])
      }
      await fails(lane.load(items, chunk, data([['1', 'late', null, '1']]), 1, never), 'SNAPSHOT_LOST')
    })

    it('repairs rows in their partition’s order', async () => {
      await using target = await ready()
      const [lane, from] = await target.claimed(one)
      assert.ok(from)
      const rows = [
        ['1', 'wrong', null, null],
        ['2', 'surplus', null, null],
      ]
      await lane.apply(batch([group(items, 'upsert', rows)]), [advance(from)], never)
      const keys = imagesOf(
        items,
        ['1', '2', '3'].map((id) => [id, null, null, null]),
      )
      const right = [['1', 'right', 'n', '1'], [], ['3', 'missing', null, null]]
      const read = async (found: Checkpoint): Promise<Mending> => {
        assert.equal(found.offset, 1)
        const there = imagesOf(
          items,
          right.filter((row) => row.length > 0),
        )
        const mid = there.starts[1] ?? 0
        const rows = { bytes: there.bytes, starts: Int32Array.of(0, mid, mid, there.bytes.length), count: 3 }
        return { keys, rows }
      }
      await lane.repair(one, items, read, never)
      assert.deepEqual(await target.rows(items.table), [
        ['1', 'right', 'n', '1'],
        ['3', 'missing', null, null],
      ])
    })

    it('reaches what row by row would, whatever comes', { timeout: 120_000 }, async () => {
      await using target = await ready()
      const [lane, from] = await target.claimed(one)
      assert.ok(from)
      const now = { checkpoint: from, rows: new Map<string, (string | null)[]>() }
      const cell = fc.option(fc.stringMatching(/^[a-zé'"\\{},]{0,6}$/u), { nil: null })
      const event = fc.record({
        id: fc.integer({ min: -3, max: 12 }),
        kind: fc.constantFrom('set', 'set', 'patch', 'patch', 'delete'),
        name: fc.stringMatching(/^[a-z]{1,4}$/),
        note: fc.option(cell, { nil: undefined }),
        amount: fc.option(fc.option(fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }), { nil: null }), {
          nil: undefined,
        }),
      })
      await fc.assert(
        fc.asyncProperty(fc.array(event, { maxLength: 40 }), async (events) => {
          const folded = new Map<string, { kind: 'upsert' | 'update' | 'delete'; row: Value[] }>()
          const changes: TestChange[] = []
          for (const { id, kind, name: title, note, amount } of events) {
            const key = String(id)
            const old = now.rows.get(key)
            const number = amount === null || amount === undefined ? amount : String(amount)
            if (kind === 'delete') {
              now.rows.delete(key)
              changes.push({ schema: items, op: 'delete', old: [key, null, null, null] })
              folded.set(key, { kind: 'delete', row: [key, null, null, null] })
            } else if (kind === 'set' || !old) {
              const row = [key, title, note ?? null, number ?? null]
              now.rows.set(key, row)
              changes.push({ schema: items, op: old ? 'update' : 'insert', next: row })
              folded.set(key, { kind: 'upsert', row })
            } else {
              const row: Value[] = [key, title, note, number]
              now.rows.set(
                key,
                old.map((value, c) => (row[c] === undefined ? value : (row[c] ?? null))),
              )
              changes.push({ schema: items, op: 'update', next: row })
              const before = folded.get(key)
              const kept = before?.row.map((value, c) => (row[c] === undefined ? value : row[c]))
              const all = kept ?? row
              folded.set(key, {
                kind: before?.kind === 'upsert' || !all.includes(undefined) ? 'upsert' : 'update',
                row: all,
              })
            }
          }
          const bySet = Map.groupBy(
            folded.values(),
            ({ kind, row }) => `${kind} ${row.map((value) => value === undefined).join()}`,
          )
          const groups = [...bySet.values()].flatMap((all) => {
            const kind = all[0]?.kind
            return kind
              ? [
                  group(
                    items,
                    kind,
                    all.map(({ row }) => row),
                  ),
                ]
              : []
          })
          const step = advance(now.checkpoint)
          assert.deepEqual(await lane.apply(batch(groups, changes), [step], never), [])
          now.checkpoint = step.to
          const want = [...now.rows.values()].toSorted((a, b) => Number(a[0]) - Number(b[0]))
          const got = await target.rows(items.table)
          assert.deepEqual(
            got.toSorted((a, b) => Number(a[0]) - Number(b[0])),
            want,
          )
        }),
        { numRuns: 60, endOnFailure: true },
      )
    })
  })
}
