import type { ChangeBatch, Transaction } from '../rows.ts'
import type { Epoch, TableSchema } from '../model.ts'
import type { Encoder } from './plan.ts'
import type { Output } from '../output.ts'
import { tableName } from '../model.ts'
import { Failure } from '../errors.ts'
import { Op, Tag } from '../rows.ts'
import { fingerprint, keySchema, valueSchema } from './envelope.ts'
import { Code, codeOf } from './native.ts'
import { writeCell } from './write-cell.ts'
import { copyBytes, memoryOf, reading, writeInt, writeNumber, writing, type Memory } from './varint.ts'

/** What is known of a table before its first row. */
type Plan = {
  readonly schema: TableSchema
  readonly columns: number
  /** Code of each column in a new image, and in an old one, where untrusted cells are skipped. */
  readonly after: Uint8Array
  readonly before: Uint8Array
  readonly key: Uint16Array
  /** Columns up to the last of the key, and for each where its tag stands in the image at hand. */
  readonly keyReach: number
  readonly cellAt: Int32Array
}
/** The parts of an envelope that all changes of a transaction share: framing to position up to `head`, then epoch to ts_ms up to `end`. */
type Frame = { readonly memory: Memory; readonly head: number; readonly end: number; readonly snapshotAt: number }

const letters = Uint8Array.from('cudrp', (letter) => letter.charCodeAt(0))
const opAt = 6

/** Throws STREAM_MALFORMED naming table and column, never the value, where an image is not what the schema says. The bytes written are those a
 *  general Avro encoder writes for `keySchema` and `valueSchema`. */
export function compileEncoder(schema: TableSchema): Encoder {
  const plan = compile(schema)
  const keyId = fingerprint(keySchema(schema))
  const valueId = fingerprint(valueSchema(schema))
  let cursor = 0
  let transaction: Transaction | undefined
  let epoch: Epoch = -1
  let frame: Frame | undefined
  return {
    key(out, images, row) {
      if (plan.key.length === 0) return
      const start = images.starts[row] as number
      const end = images.starts[row + 1] as number
      const from = reading(images.bytes)
      out.reserve(5 + locateKey(plan, from, start, end))
      out.at = writeKey(plan, keyId, writing(out.bytes), out.at, from)
    },
    value(out, batch, i, seq, at) {
      cursor = transactionAt(batch.transactions, i, cursor)
      const found = batch.transactions[cursor]
      if (frame === undefined || found !== transaction || at !== epoch) {
        if (found === undefined) throw new Failure('BUG', { observed: `change ${i} is in no transaction` })
        frame = frameOf(found, at, valueId)
        transaction = found
        epoch = at
      }
      writeValue(plan, frame, out, batch, i, seq)
    },
  }
}

function compile(schema: TableSchema): Plan {
  const after = Uint8Array.from(schema.columns, (column) => codeOf(column.form))
  return {
    schema,
    columns: after.length,
    after,
    before: after.map((code, i) => (schema.before === 'row' || schema.key.includes(i) ? code : Code.skip)),
    key: Uint16Array.from(schema.key),
    keyReach: Math.max(-1, ...schema.key) + 1,
    cellAt: new Int32Array(after.length),
  }
}

/** Index of the last transaction that begins at or before change `i`. */
function transactionAt(transactions: readonly Transaction[], i: number, hint: number): number {
  const guess = transactions[hint]
  if (guess !== undefined && guess.first <= i) {
    const next = transactions[hint + 1]
    if (next === undefined || next.first > i) return hint
  }
  let low = 0
  let high = transactions.length
  while (low < high) {
    const middle = (low + high) >>> 1
    if ((transactions[middle]?.first ?? 0) <= i) low = middle + 1
    else high = middle
  }
  return low - 1
}

function frameOf({ position, committedAt, id }: Transaction, epoch: Epoch, schemaId: number): Frame {
  const positionSize = Buffer.byteLength(position)
  const idSize = Buffer.byteLength(id)
  const bytes = Buffer.alloc(60 + positionSize + idSize)
  bytes.writeUInt32BE(schemaId, 1)
  bytes[5] = 2 // length of `op`
  let at = writeInt(bytes, 7, positionSize)
  at += bytes.write(position, at)
  const head = at
  at = writeNumber(bytes, at, epoch)
  at = writeInt(bytes, at, idSize)
  at += bytes.write(id, at)
  at = writeNumber(bytes, at, Math.round(committedAt * 1000))
  const snapshotAt = at
  const end = writeNumber(bytes, at + 1, Math.floor(committedAt))
  return { memory: memoryOf(bytes), head, end, snapshotAt }
}

function writeValue(plan: Plan, frame: Frame, out: Output, batch: ChangeBatch, i: number, seq: number): void {
  const { starts } = batch.images
  const from = reading(batch.images.bytes)
  const old = starts[2 * i] as number
  const middle = starts[2 * i + 1] as number
  const end = starts[2 * i + 2] as number
  // a cell grows by at most 9 bytes over its image, and an absent one by 3 in the list
  out.reserve(frame.end + 32 + end - old + 24 * plan.columns)
  const to = writing(out.bytes)
  const op = batch.op[i] as number
  frame.memory.bytes[opAt] = letters[op] as number
  frame.memory.bytes[frame.snapshotAt] = op === Op.read ? 1 : 0
  let at = copyBytes(to, out.at, frame.memory, 0, frame.head)
  at = writeNumber(to.bytes, at, seq)
  at = copyBytes(to, at, frame.memory, frame.head, frame.end)
  const rows = at
  at = writeNone(to, at) // nothing absent
  at = old === middle ? writeNone(to, at) : writeRow(plan, plan.before, true, to, at, from, old, middle)
  at = middle === end ? writeNone(to, at) : writeRow(plan, plan.after, false, to, at, from, middle, end)
  if (at < 0) {
    // rare: cells were not sent, so their list comes before both rows
    at = writeAbsent(plan, to, rows, from, middle)
    at = old === middle ? writeNone(to, at) : writeRow(plan, plan.before, true, to, at, from, old, middle)
    at = -writeRow(plan, plan.after, false, to, at, from, middle, end)
  }
  out.at = at
}

function writeNone(to: Memory, at: number): number {
  to.bytes[at] = 0
  return at + 1
}

/** Writes an image as a nullable row; the negative end if a cell was absent. */
function writeRow(
  plan: Plan,
  codes: Uint8Array,
  old: boolean,
  to: Memory,
  at: number,
  from: Memory,
  start: number,
  end: number,
): number {
  const { columns } = plan
  const { bytes, view } = from
  const written = to.bytes
  if (end - start < 2 || view.getUint16(start) !== columns) throw broken(plan)
  let cell = start + 2
  let absent = false
  written[at++] = 2
  for (let column = 0; column < columns; column++) {
    if (cell >= end) throw broken(plan)
    const tag = bytes[cell++] as number
    const code = codes[column] as number
    if (tag === Tag.null) {
      written[at++] = 0
      continue
    }
    if (tag === Tag.absent) {
      if (old && code !== Code.skip) throw malformed(plan, column, 'an old value that was not sent')
      absent = true
      written[at++] = 0
      continue
    }
    if (cell + 4 > end) throw broken(plan)
    const size = view.getInt32(cell)
    cell += 4
    if (size < 0 || size > end - cell) throw broken(plan)
    if (code === Code.skip) written[at++] = 0
    else {
      written[at++] = 2
      if (code === Code.text && tag === Tag.text)
        at = copyBytes(to, writeInt(written, at, size), from, cell, cell + size)
      else at = writeCell(to, at, code, tag, from, cell, cell + size)
      if (at < 0) throw malformed(plan, column)
    }
    cell += size
  }
  if (cell !== end) throw broken(plan)
  return absent && !old ? -at : at
}

/** The list of columns of an image that were not sent. The image was walked before. */
function writeAbsent(plan: Plan, to: Memory, at: number, from: Memory, start: number): number {
  let cell = start + 2
  let count = 0
  for (let column = 0; column < plan.columns; column++) {
    const tag = from.bytes[cell] as number
    if (tag === Tag.absent) plan.cellAt[count++] = column
    cell += tag === Tag.absent || tag === Tag.null ? 1 : 5 + from.view.getInt32(cell + 1)
  }
  at = writeInt(to.bytes, at, count)
  for (let i = 0; i < count; i++) at = writeInt(to.bytes, at, plan.cellAt[i] as number)
  return writeNone(to, at)
}

/** Finds the key's cells; returns the most bytes they take: the rest of the row may be large. */
function locateKey(plan: Plan, from: Memory, start: number, end: number): number {
  const { key, keyReach, cellAt } = plan
  const { bytes, view } = from
  if (end - start < 2 || view.getUint16(start) !== plan.columns) throw broken(plan)
  let cell = start + 2
  for (let column = 0; column < keyReach; column++) {
    if (cell >= end) throw broken(plan)
    cellAt[column] = cell
    const tag = bytes[cell] as number
    if (tag === Tag.null || tag === Tag.absent) cell++
    else {
      if (cell + 5 > end) throw broken(plan)
      const size = view.getInt32(cell + 1)
      if (size < 0 || size > end - cell - 5) throw broken(plan)
      cell += 5 + size
    }
  }
  let most = 0
  for (let k = 0; k < key.length; k++) {
    const tagAt = cellAt[key[k] as number] as number
    const tag = bytes[tagAt] as number
    most += tag === Tag.null || tag === Tag.absent ? 0 : 10 + view.getInt32(tagAt + 1)
  }
  return most
}

function writeKey(plan: Plan, id: number, to: Memory, at: number, from: Memory): number {
  const { key, cellAt, after } = plan
  const { bytes, view } = from
  to.bytes[at] = 0
  to.view.setUint32(at + 1, id)
  at += 5
  for (let k = 0; k < key.length; k++) {
    const column = key[k] as number
    const tagAt = cellAt[column] as number
    const tag = bytes[tagAt] as number
    if (tag === Tag.null || tag === Tag.absent) throw malformed(plan, column, 'a key without a value')
    const size = view.getInt32(tagAt + 1)
    at = writeCell(to, at, after[column] as number, tag, from, tagAt + 5, tagAt + 5 + size)
    if (at < 0) throw malformed(plan, column)
  }
  return at
}

function malformed(plan: Plan, index: number, observed?: string): Failure {
  const column = plan.schema.columns[index]
  return new Failure('STREAM_MALFORMED', {
    object: `column ${column?.name} (${column?.type}) of ${tableName(plan.schema.table)}`,
    observed: observed ?? `a value that is no ${column?.form}`,
  })
}

function broken(plan: Plan): Failure {
  return new Failure('STREAM_MALFORMED', {
    object: tableName(plan.schema.table),
    observed: `a row image that is not ${plan.columns} cells`,
  })
}
