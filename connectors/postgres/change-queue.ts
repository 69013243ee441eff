import type { SourceEvent } from '../../src/connector.ts'
import { Failure } from '../../src/errors.ts'
import { tableName, type Effect, type Mark, type Position, type TableSchema } from '../../src/model.ts'
import { Output } from '../../src/output.ts'
import { Tag, type Transaction } from '../../src/rows.ts'

/** Room of one batch; a single change may exceed the bytes. */
const batchRows = 16_384
const batchBytes = 1 << 20
/** Images are found by 32-bit starts. */
const imageBytes = 0x7fff_ffff
const maxSchemas = 0xffff

/**
 * Events from the decoder to whoever pulls. Row messages are appended to the open batch; whatever is not a row closes
 * it, so order is kept. Memory of a pulled batch is used again after the next pull.
 */
export interface ChangeQueue {
  /** Bytes held, those lent included. */
  readonly bytes: number
  readonly empty: boolean
  /** Number the next row message or effect gets. */
  readonly seq: number
  /** Opens a transaction: what follows belongs to it, numbered from 0. */
  begin(position: Position, committedAt: number, id: string): void
  /** One row message: old image [oldStart, oldEnd) and new one of `from`, copied; an empty one is none. `fill`: absent cells of the new one are taken
   *  from the old, where it has a value: an old key has none beside the key. */
  change(
    schema: TableSchema,
    op: number,
    from: Buffer,
    oldStart: number,
    oldEnd: number,
    newStart: number,
    newEnd: number,
    fill: boolean,
  ): void
  /** One row message that is not wanted; it has its number. */
  skip(): void
  /** One message with an effect of its own; numbered as rows are. */
  effect(effect: Effect): void
  /** An effect at a message of our own, which is in no transaction. */
  effectAt(mark: Mark, committedAt: number, effect: Effect): void
  message(position: Position, committedAt: number, prefix: string, content: Uint8Array): void
  /** The next event. Ends what was lent before. */
  pull(): SourceEvent | undefined
}

type Filling = {
  out: Output
  readonly starts: Int32Array
  readonly op: Uint8Array
  readonly table: Uint16Array
  count: number
  schemas: TableSchema[]
  transactions: Transaction[]
}

export function changeQueue(): ChangeQueue {
  return new Queue()
}

class Queue implements ChangeQueue {
  bytes = 0
  readonly #ready: { readonly event: SourceEvent; readonly filling: Filling | undefined; readonly bytes: number }[] = []
  readonly #free: Filling[] = []
  #filling = newFilling()
  #lent: { readonly filling: Filling | undefined; readonly bytes: number } = { filling: undefined, bytes: 0 }
  #position = '' as Position
  #committedAt = 0
  #id = ''
  #number = 0
  /** The open batch has an entry for the open transaction. */
  #entered = false
  #lastSchema: TableSchema | undefined
  #lastTable = 0

  get seq(): number {
    return 4 * this.#number
  }

  get empty(): boolean {
    return this.#ready.length === 0 && this.#filling.count === 0
  }

  begin(position: Position, committedAt: number, id: string): void {
    this.#position = position
    this.#committedAt = committedAt
    this.#id = id
    this.#number = 0
    this.#entered = false
  }

  change(
    schema: TableSchema,
    op: number,
    from: Buffer,
    oldStart: number,
    oldEnd: number,
    newStart: number,
    newEnd: number,
    fill: boolean,
  ): void {
    const oldSize = oldEnd - oldStart
    const most = oldSize + (newEnd - newStart) + (fill ? oldSize : 0)
    if (most > imageBytes) {
      const observed = `a change of ${most} bytes`
      throw new Failure('LIMIT_EXCEEDED', {
        object: tableName(schema.table),
        observed,
        needed: `at most ${imageBytes}`,
      })
    }
    const open = this.#filling
    if (open.count === batchRows || open.out.at + most > batchBytes || open.schemas.length === maxSchemas) this.#close()
    if (schema !== this.#lastSchema) this.#find(schema)
    if (!this.#entered) this.#enter()
    const { out, starts, op: ops, table, count } = this.#filling
    const began = out.at
    out.reserve(most)
    from.copy(out.bytes, out.at, oldStart, oldEnd)
    out.at += oldSize
    starts[2 * count + 1] = out.at
    if (fill) overlay(out, from, newStart, began)
    else {
      from.copy(out.bytes, out.at, newStart, newEnd)
      out.at += newEnd - newStart
    }
    starts[2 * count + 2] = out.at
    ops[count] = op
    table[count] = this.#lastTable
    this.#filling.count = count + 1
    this.#number++
    this.bytes += out.at - began
  }

  skip(): void {
    this.#number++
    this.#entered = false
  }

  effect(effect: Effect): void {
    const mark = { position: this.#position, seq: 4 * this.#number++ }
    this.effectAt(mark, this.#committedAt, effect)
  }

  effectAt(mark: Mark, committedAt: number, effect: Effect): void {
    this.#add({ kind: 'effect', effect, mark, committedAt }, 256)
  }

  message(position: Position, committedAt: number, prefix: string, content: Uint8Array): void {
    this.#add({ kind: 'message', position, committedAt, prefix, content }, 256 + content.length)
  }

  pull(): SourceEvent | undefined {
    this.#takeBack()
    if (this.#ready.length === 0) this.#close()
    const next = this.#ready.shift()
    if (!next) return undefined
    this.#lent = next
    return next.event
  }

  #takeBack(): void {
    const { filling, bytes } = this.#lent
    this.bytes -= bytes
    this.#lent = { filling: undefined, bytes: 0 }
    if (!filling || this.#free.length === 4) return
    filling.out.clear()
    filling.count = 0
    filling.schemas = []
    filling.transactions = []
    this.#free.push(filling)
  }

  #close(): void {
    const filling = this.#filling
    if (filling.count === 0) return
    const { count, out, starts, op, table, schemas, transactions } = filling
    const images = { bytes: out.bytes.subarray(0, out.at), starts, count: 2 * count }
    const event: SourceEvent = { kind: 'changes', count, images, op, table, schemas, transactions }
    this.#ready.push({ event, filling, bytes: out.at })
    this.#filling = this.#free.pop() ?? newFilling()
    this.#entered = false
    this.#lastSchema = undefined
  }

  #add(event: SourceEvent, bytes: number): void {
    this.#close()
    this.#ready.push({ event, filling: undefined, bytes })
    this.bytes += bytes
  }

  #enter(): void {
    this.#filling.transactions.push({
      position: this.#position,
      committedAt: this.#committedAt,
      id: this.#id,
      first: this.#filling.count,
      firstSeq: 4 * this.#number,
    })
    this.#entered = true
  }

  #find(schema: TableSchema): void {
    const { schemas } = this.#filling
    const index = schemas.indexOf(schema)
    this.#lastTable = index < 0 ? schemas.push(schema) - 1 : index
    this.#lastSchema = schema
  }
}

function newFilling(): Filling {
  return {
    out: new Output(64 << 10),
    starts: new Int32Array(2 * batchRows + 1),
    op: new Uint8Array(batchRows),
    table: new Uint16Array(batchRows),
    count: 0,
    schemas: [],
    transactions: [],
  }
}

/** Appends the new image with its absent cells taken from the old one in `out`, unless they are null there: of an old key those beside the key are, and an
 *  absent cell is never null. Both were checked to have the same number of cells. */
function overlay(out: Output, from: Buffer, newStart: number, oldStart: number): void {
  const { bytes } = out
  const cells = from.readUInt16BE(newStart)
  let at = newStart + 2
  let oldAt = oldStart + 2
  out.at = bytes.writeUInt16BE(cells, out.at)
  for (let left = cells; left > 0; left--) {
    const end = cellEnd(from, at)
    const oldEnd = cellEnd(bytes, oldAt)
    if (from[at] === Tag.absent && bytes[oldAt] !== Tag.null) out.at += bytes.copy(bytes, out.at, oldAt, oldEnd)
    else out.at += from.copy(bytes, out.at, at, end)
    at = end
    oldAt = oldEnd
  }
}

function cellEnd(bytes: Buffer, at: number): number {
  const tag = bytes[at]
  return tag === Tag.text || tag === Tag.native ? at + 5 + bytes.readInt32BE(at + 1) : at + 1
}
