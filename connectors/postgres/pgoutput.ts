import { Failure } from '../../src/errors.ts'
import { comparePositions, type Position, type TableId, type TableSchema, heartbeatPrefix } from '../../src/model.ts'
import { Op, Tag } from '../../src/rows.ts'
import type { ChangeQueue } from './change-queue.ts'
import type { Tables } from './history.ts'
import { positionOf, readPosition } from './position.ts'
import type { Left } from './version.ts'

/** What a Relation message tells of a table. Columns are the published ones in attnum order, without generated ones. */
export type Relation = {
  readonly oid: number
  readonly table: TableId
  readonly identity: 'default' | 'nothing' | 'full' | 'index'
  readonly columns: readonly {
    readonly name: string
    readonly typeOid: number
    readonly typmod: number
    readonly key: boolean
  }[]
}
/** Message types that frame transactions in progress. */
export const Frame = { streamStart: 0x53, streamStop: 0x45, streamCommit: 0x63, streamAbort: 0x41 } as const
const Type = {
  begin: 0x42,
  commit: 0x43,
  origin: 0x4f,
  relation: 0x52,
  type: 0x59,
  insert: 0x49,
  update: 0x55,
  delete: 0x44,
  truncate: 0x54,
  message: 0x4d,
} as const
const TupleKind = { key: 0x4b, old: 0x4f, new: 0x4e } as const
const identities = { d: 'default', n: 'nothing', f: 'full', i: 'index' } as const
/** 2000, where the server's clock begins, in ms since 1970. */
const serverEpoch = 946_684_800_000

type Known = { readonly relation: Relation; readonly left: Left | undefined; schema: TableSchema | undefined }
export type StreamCommit = { readonly xid: number; readonly position: Position; readonly committedAt: number }

/** Turns messages of the output plugin, protocols 1-4, into events. Pure and bounded: bytes that make no sense are STREAM_MALFORMED. */
export interface Decoder {
  /** A transaction's messages are being decoded: its commit is still to come. */
  readonly open: boolean
  /** Everything up to here was decoded, and handed to the queue if it is wanted. */
  readonly reached: Position
  /** One whole message; `streamed`: of a transaction in progress, so that its transaction's number stands after its type. False: nothing was taken of
   *  it, for its tables are to be settled first. Throws Failure. */
  decode(message: Buffer, streamed: boolean): boolean
  /** Brackets for the messages of a transaction that came in progress. */
  begin(commit: StreamCommit): void
  commit(position: Position): void
  /** A message of our own, without content, that stands before all that is to come. */
  prompt(position: Position): void
}

export type DecoderOptions = {
  readonly queue: ChangeQueue
  readonly tables: Omit<Tables, 'settle'>
  /** Changes made by an origin of this name are our own reverse writes, and dropped. */
  readonly ours: (origin: string) => boolean
  /** Transactions and messages up to here are left out. */
  readonly after: Position
}

export function decoder(options: DecoderOptions): Decoder {
  return new PgoutputDecoder(options)
}

/** The transaction a message of a transaction in progress belongs to; itself or a part of it that may still be aborted. */
export function messageXid(message: Buffer): number | undefined {
  return message[0] === Type.origin ? undefined : message.readUInt32BE(1)
}
/** Relations are needed even where the part that brought them is aborted: the server sends them once. */
export function survivesAbort(message: Buffer): boolean {
  return message[0] === Type.relation
}
export function readStreamStart(message: Buffer): number {
  return guarded(message, () => exactly(message, 6).readUInt32BE(1))
}
export function readStreamCommit(message: Buffer): StreamCommit {
  return guarded(message, () => ({
    xid: exactly(message, 30).readUInt32BE(1),
    position: readPosition(message, 6),
    committedAt: readClock(message, 22),
  }))
}
export function readStreamAbort(message: Buffer): { readonly xid: number; readonly part: number } {
  // With parallel streaming, which we do not ask for, place and time follow.
  return guarded(message, () => ({ xid: message.readUInt32BE(1), part: message.readUInt32BE(5) }))
}

class PgoutputDecoder implements Decoder {
  open = false
  reached: Position
  readonly #queue: ChangeQueue
  readonly #options: DecoderOptions
  readonly #relations = new Map<number, Known>()
  #xid = 0
  #position = '' as Position
  #committedAt = 0
  /** The latest time the server has told: whatever was committed before is behind us. 0: none yet. */
  #told = 0
  /** Messages of the open transaction are read but not handed on. */
  #dropped = false
  #messages: { readonly prefix: string; readonly content: Uint8Array }[] = []
  /** The tuple walked last has absent cells. */
  #absent = false
  #relationOid = -1
  #schema: TableSchema | undefined

  constructor(options: DecoderOptions) {
    this.#options = options
    this.#queue = options.queue
    this.reached = options.after
  }

  decode(message: Buffer, streamed: boolean): boolean {
    // Not `guarded`: no closure for each row.
    try {
      this.#decode(message, streamed ? 5 : 1)
      return true
    } catch (error) {
      if (error === unsettled) return false
      throw cutOff(message, error)
    }
  }

  begin({ xid, position, committedAt }: StreamCommit): void {
    if (this.open) throw malformed('a transaction begins inside another')
    this.open = true
    this.#position = position
    this.#committedAt = committedAt
    this.#xid = xid
    this.#told = Math.max(this.#told, committedAt)
    this.#dropped = comparePositions(position, this.#options.after) <= 0
    this.#messages = []
    this.#queue.begin(position, committedAt, String(xid))
  }

  commit(position: Position): void {
    if (!this.open || position !== this.#position) throw malformed(`commit at ${position}, begun for ${this.#position}`)
    if (!this.#dropped) {
      for (const { prefix, content } of this.#messages) {
        this.#queue.message(position, this.#committedAt, prefix, content)
      }
    }
    if (comparePositions(position, this.reached) > 0) this.reached = position
    this.#messages = []
    this.open = false
  }

  prompt(position: Position): void {
    this.#queue.message(position, this.#told, heartbeatPrefix, new Uint8Array(0))
    this.reached = position
  }

  #decode(message: Buffer, at: number): void {
    switch (message[0]) {
      case Type.insert:
        return this.#insert(message, at)
      case Type.update:
        return this.#update(message, at)
      case Type.delete:
        return this.#delete(message, at)
      case Type.begin:
        exactly(message, 21)
        return this.begin({
          position: readPosition(message, 1),
          committedAt: readClock(message, 9),
          xid: message.readUInt32BE(17),
        })
      case Type.commit:
        return this.commit(readPosition(exactly(message, 26), 2))
      case Type.relation:
        return this.#relation(message, at)
      case Type.origin: {
        // Has no transaction's number, streamed or not.
        const name = readName(message, 9)
        if (!this.open) throw malformed('an origin outside of a transaction')
        if (this.#options.ours(name)) this.#dropped = true
        return
      }
      case Type.truncate:
        return this.#truncate(message, at)
      case Type.message:
        return this.#message(message, at)
      case Type.type:
        return
      default:
        throw malformed(`message type ${message[0]}`)
    }
  }

  #insert(message: Buffer, at: number): void {
    const schema = this.#table(message.readUInt32BE(at))
    if (message[at + 4] !== TupleKind.new) throw malformed('an insert without a new row')
    const start = at + 5
    this.#toEnd(message, start, schema)
    if (schema) this.#queue.change(schema, Op.insert, message, start, start, start, message.length, false)
    else this.#skip()
  }

  #update(message: Buffer, at: number): void {
    const schema = this.#table(message.readUInt32BE(at))
    let start = at + 5
    const oldStart = start
    let oldEnd = start
    let kind = message[at + 4]
    if (kind === TupleKind.key || kind === TupleKind.old) {
      oldEnd = this.#walk(message, oldStart, schema)
      kind = message[oldEnd]
      start = oldEnd + 1
    }
    if (kind !== TupleKind.new) throw malformed('an update without a new row')
    this.#toEnd(message, start, schema)
    if (!schema) return this.#skip()
    const fill = this.#absent && oldEnd > oldStart
    if (fill && message.readUInt16BE(oldStart) !== message.readUInt16BE(start)) throw malformed('rows of two widths')
    this.#queue.change(schema, Op.update, message, oldStart, oldEnd, start, message.length, fill)
  }

  #delete(message: Buffer, at: number): void {
    const schema = this.#table(message.readUInt32BE(at))
    const kind = message[at + 4]
    if (kind !== TupleKind.key && kind !== TupleKind.old) throw malformed('a delete without an old row')
    const start = at + 5
    this.#toEnd(message, start, schema)
    const end = message.length
    if (schema) this.#queue.change(schema, Op.delete, message, start, end, end, end, false)
    else this.#skip()
  }

  #truncate(message: Buffer, at: number): void {
    const count = message.readUInt32BE(at)
    const options = message.readUInt8(at + 4)
    if (count === 0 || message.length !== at + 5 + 4 * count) throw malformed('a truncate of the wrong length')
    const tables: TableId[] = []
    for (let i = 0; i < count; i++) {
      const schema = this.#table(message.readUInt32BE(at + 5 + 4 * i))
      if (schema) tables.push(schema.table)
    }
    if (this.#dropped || tables.length === 0) return this.#skip()
    this.#queue.effect({
      kind: 'truncate',
      tables,
      cascade: (options & 1) !== 0,
      restartCounters: (options & 2) !== 0,
    })
  }

  #message(message: Buffer, at: number): void {
    const transactional = (message.readUInt8(at) & 1) !== 0
    const end = message.readBigUInt64BE(at + 1)
    const prefix = readName(message, at + 9)
    const start = message.indexOf(0, at + 9) + 1
    const length = message.readUInt32BE(start)
    if (start + 4 + length !== message.length) throw malformed('a message of the wrong length')
    if (transactional && !this.open) throw malformed('a transactional message outside of a transaction')
    if (transactional && this.#dropped) return
    const content = Uint8Array.from(message.subarray(start + 4))
    if (transactional) {
      // It stands behind the changes of its transaction, whose position it shares.
      this.#messages.push({ prefix, content })
      return
    }
    if (end === 0n) throw malformed('a message without a place')
    // The server names the record's end, where the next commit may start: the byte before lies inside the record.
    const position = positionOf(end - 1n)
    if (comparePositions(position, this.reached) <= 0) return
    const changes = prefix === heartbeatPrefix ? this.#options.tables.passing(position) : []
    if (changes === undefined) throw unsettled
    this.reached = position
    const stamped = prefix.startsWith(ownPrefix) ? splitStamp(content) : undefined
    this.#told = Math.max(this.#told, stamped?.at ?? 0)
    const committedAt = stamped?.at ?? this.#told
    for (const { effect, mark } of changes) this.#queue.effectAt(mark, committedAt, effect)
    if (changes.length > 0) {
      this.#relationOid = -1
      for (const entry of this.#relations.values()) entry.schema = undefined
    }
    this.#queue.message(position, committedAt, prefix, stamped?.content ?? content)
  }

  #relation(message: Buffer, at: number): void {
    const relation = readRelation(message, at)
    this.#relations.set(relation.oid, { relation, left: this.#options.tables.left(relation.oid), schema: undefined })
    this.#relationOid = -1
  }

  /** A row message that is not handed on counts all the same (H24). */
  #skip(): void {
    if (!this.#dropped) this.#queue.skip()
  }

  /** Of the open transaction's row; undefined where it or the table is passed over. Most rows are of the table of the row before. */
  #table(oid: number): TableSchema | undefined {
    if (!this.open) throw malformed('a row outside of a transaction')
    if (this.#dropped) return undefined
    if (oid === this.#relationOid) return this.#schema
    const known = this.#relations.get(oid)
    if (known === undefined) throw malformed(`a row of table ${oid}, which was not described`)
    if (known.left !== undefined && this.#passesOver(known.left)) return undefined
    const schema = known.schema ?? this.#tableAt(known.relation)
    // A recorded change takes effect at its mark, whether or not the server describes the table anew there.
    if (this.#options.tables.ahead(oid)) return schema
    this.#schema = known.schema = schema
    this.#relationOid = oid
    return schema
  }

  /** Changes that were handed on before their table was left out keep their numbers. */
  #passesOver({ until, marks }: Left): boolean {
    if (until !== undefined && comparePositions(this.#position, until) > 0) return false
    if (marks !== undefined)
      for (const { position, seq } of marks)
        if (position === this.#position && seq === this.#queue.seq) this.#queue.skip()
    return true
  }

  #tableAt(relation: Relation): TableSchema {
    for (;;) {
      const mark = { position: this.#position, seq: this.#queue.seq }
      const found = this.#options.tables.at(relation, mark, this.#xid)
      if (found === undefined) throw unsettled
      if (found instanceof Failure) throw found
      if (!('kind' in found)) return found
      this.#queue.effect(found)
    }
  }

  #toEnd(message: Buffer, at: number, schema: TableSchema | undefined): void {
    if (this.#walk(message, at, schema) !== message.length) throw malformed('bytes behind a row')
  }

  /** The end of the tuple at `at`, each cell of which lies inside the message. Its layout is the row image's. */
  #walk(message: Buffer, at: number, schema: TableSchema | undefined): number {
    const cells = message.readUInt16BE(at)
    if (schema !== undefined && cells !== schema.columns.length) {
      throw malformed(`a row of ${cells} columns instead of ${schema.columns.length}`)
    }
    const end = message.length
    let next = at + 2
    this.#absent = false
    for (let left = cells; left > 0; left--) {
      const tag = message[next++]
      if (tag === Tag.text) {
        const length = message.readInt32BE(next)
        next += 4 + length
        if (length < 0 || next > end) throw malformed('a cell beyond its message')
      } else if (tag === Tag.absent) this.#absent = true
      else if (tag !== Tag.null) throw malformed(`cell tag ${tag}`)
    }
    return next
  }
}

function readRelation(message: Buffer, at: number): Relation {
  const oid = message.readUInt32BE(at)
  let next = at + 4
  const name = (): string => {
    const text = readName(message, next)
    next = message.indexOf(0, next) + 1
    return text
  }
  const table = { schema: name() || 'pg_catalog', name: name() }
  const identity = identities[String.fromCharCode(message.readUInt8(next)) as keyof typeof identities]
  if (identity === undefined) throw malformed(`replica identity ${message[next]}`)
  const count = message.readUInt16BE(next + 1)
  next += 3
  const columns = []
  for (let i = 0; i < count; i++) {
    const key = (message.readUInt8(next++) & 1) !== 0
    columns.push({ name: name(), typeOid: message.readUInt32BE(next), typmod: message.readInt32BE(next + 4), key })
    next += 8
  }
  if (next !== message.length) throw malformed('bytes behind a table')
  return { oid, table, identity, columns }
}

/** Text up to the zero byte. */
function readName(message: Buffer, at: number): string {
  const end = message.indexOf(0, at)
  if (end < 0 || at > message.length) throw malformed('a name without an end')
  return message.toString('utf8', at, end)
}

/** Microseconds since 2000 to ms since 1970. */
function readClock(message: Buffer, at: number): number {
  const microseconds = message.readInt32BE(at) * 0x1_0000_0000 + message.readUInt32BE(at + 4)
  return serverEpoch + Math.floor(microseconds / 1000)
}

function exactly(message: Buffer, length: number): Buffer {
  if (message.length !== length) throw malformed(`${message.length} bytes instead of ${length}`)
  return message
}

const unsettled = new Error('settle first')

function malformed(observed: string): Failure {
  return new Failure('STREAM_MALFORMED', { observed })
}

function guarded<T>(message: Buffer, read: () => T): T {
  try {
    return read()
  } catch (error) {
    throw cutOff(message, error)
  }
}

/** Reads beyond the end are errors of the buffer's own methods. */
function cutOff(message: Buffer, error: unknown): unknown {
  if (!(error instanceof RangeError)) return error
  const observed = `message type ${message[0]} of ${message.length} bytes ends too early`
  return new Failure('STREAM_MALFORMED', { observed, cause: error })
}

const ownPrefix = 'crossfade.'
/** What `emitMessage` put before a content; undefined if somebody else wrote under our prefix. */
function splitStamp(bytes: Uint8Array): { readonly at: number; readonly content: Uint8Array } | undefined {
  const end = bytes.indexOf(0x20)
  const digits = end < 1 || end > 15 ? '' : Buffer.from(bytes.subarray(0, end)).toString('latin1')
  return /^\d+$/.test(digits) ? { at: Number(digits), content: bytes.subarray(end + 1) } : undefined
}
