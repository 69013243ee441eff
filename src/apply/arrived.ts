import type { Epoch, Position, TableSchema } from '../model.ts'
import { Output } from '../output.ts'
import { Op, type ChangeBatch, type Transaction } from '../rows.ts'

/** Consecutive changes of one source transaction in one partition, admitted under one epoch. */
type Run = {
  readonly position: Position
  readonly committedAt: number
  readonly epoch: Epoch
  /** Its changes may miss their row. */
  readonly mayMiss: boolean
}
/** A table under one schema, as the batcher and the fold know it. */
export type Table = {
  readonly schema: TableSchema
  readonly name: string
  /** Never folded: no key, keys that may be equal and differ in bytes, or changes only the connector understands. */
  readonly inOrder: boolean
}
/** Admitted changes as columns. Images and key bodies lie in arenas of their own, so that nothing of a fetch is kept. Change i has the key
 *  keys[key[i], key[i + 1]), the old image images[old[i], fresh[i]) and the new image images[fresh[i], end[i]). */
export type Arrived = {
  count: number
  op: Uint8Array
  /** Indexes into `tables` and `runs`. */
  table: Int32Array
  run: Int32Array
  seq: Float64Array
  /** The log offset after the change. */
  next: Float64Array
  key: Int32Array
  old: Int32Array
  fresh: Int32Array
  end: Int32Array
  readonly tables: Table[]
  readonly runs: Run[]
  readonly keys: Output
  readonly images: Output
}

export function createArrived(): Arrived {
  const capacity = 1024
  return {
    count: 0,
    op: new Uint8Array(capacity),
    table: new Int32Array(capacity),
    run: new Int32Array(capacity),
    seq: new Float64Array(capacity),
    next: new Float64Array(capacity),
    key: new Int32Array(capacity + 1),
    old: new Int32Array(capacity),
    fresh: new Int32Array(capacity),
    end: new Int32Array(capacity),
    tables: [],
    runs: [],
    keys: new Output(16 * 1024),
    images: new Output(256 * 1024),
  }
}

/** Room for one more change. */
export function reserveChange(into: Arrived): void {
  if (into.count < into.op.length) return
  const capacity = into.op.length * 2
  into.op = grown(into.op, new Uint8Array(capacity))
  into.table = grown(into.table, new Int32Array(capacity))
  into.run = grown(into.run, new Int32Array(capacity))
  into.seq = grown(into.seq, new Float64Array(capacity))
  into.next = grown(into.next, new Float64Array(capacity))
  into.key = grown(into.key, new Int32Array(capacity + 1))
  into.old = grown(into.old, new Int32Array(capacity))
  into.fresh = grown(into.fresh, new Int32Array(capacity))
  into.end = grown(into.end, new Int32Array(capacity))
}

/** Forgets all changes; memory is kept for the next ones, unless a rare giant has made it large. */
export function clearArrived(arrived: Arrived): void {
  arrived.count = 0
  arrived.runs.length = 0
  arrived.keys.clear()
  arrived.images.clear()
}

/** A change batch of the changes picked, in that order; memory of its own. */
export function changeBatchOf(arrived: Arrived, picked: Int32Array): ChangeBatch {
  const { images, tables } = arrived
  const count = picked.length
  const starts = new Int32Array(2 * count + 1)
  const op = new Uint8Array(count)
  const table = new Uint16Array(count)
  const transactions: Transaction[] = []
  const schemas: TableSchema[] = []
  const indexes = new Map<number, number>()
  let size = 0
  for (const i of picked) size += (arrived.end[i] ?? 0) - (arrived.old[i] ?? 0)
  const bytes = Buffer.allocUnsafe(size)
  let at = 0
  let position: Position | undefined
  let expected = 0
  for (let n = 0; n < count; n++) {
    const i = picked[n] ?? 0
    const from = arrived.old[i] ?? 0
    const middle = arrived.fresh[i] ?? 0
    const to = arrived.end[i] ?? 0
    images.bytes.copy(bytes, at, from, to)
    starts[2 * n] = at
    starts[2 * n + 1] = at + middle - from
    at += to - from
    op[n] = arrived.op[i] ?? Op.insert
    const index = arrived.table[i] ?? 0
    let known = indexes.get(index)
    if (known === undefined) {
      const found = tables[index]
      if (found === undefined) throw new RangeError(`no table ${index}`)
      known = schemas.push(found.schema) - 1
      indexes.set(index, known)
    }
    table[n] = known
    const run = arrived.runs[arrived.run[i] ?? 0]
    const seq = arrived.seq[i] ?? 0
    // Other changes of the transaction went to other partitions: a new entry wherever the numbers do not follow.
    if (run !== undefined && (run.position !== position || seq !== expected)) {
      transactions.push({ position: run.position, committedAt: run.committedAt, id: '', first: n, firstSeq: seq })
      position = run.position
    }
    expected = seq + 4
  }
  starts[2 * count] = at
  return { kind: 'changes', count, images: { bytes, starts, count: 2 * count }, op, table, schemas, transactions }
}

function grown<T extends Uint8Array | Int32Array | Float64Array>(from: T, to: T): T {
  to.set(from)
  return to
}
