import { randomBytes } from 'node:crypto'
import { closeSync, mkdirSync, openSync, read, readdirSync, rmSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { Failure } from '../../src/errors.ts'
import { Output } from '../../src/output.ts'
import { messageXid, survivesAbort } from './pgoutput.ts'

const readAt = promisify(read)
const pieceBytes = 256 << 10

export type SpoolLimits = {
  /** Held in memory over all transactions, before the largest goes to disk. */
  readonly memoryBytes: number
  readonly diskBytes: number
}
/** Transactions in progress, as the messages they came in, until they commit. A folder holds one pipeline's alone. */
export interface Spool {
  /** Appends a message to a transaction. Throws SPOOL_FULL. */
  add(xid: number, message: Buffer): void
  /** Forgets a transaction (`part` is itself), or what one of its parts did. */
  abort(xid: number, part: number): void
  /** Takes a transaction out; its messages without those of aborted parts. */
  replay(xid: number): Replay
  readonly memoryBytes: number
  readonly diskBytes: number
  /** Deletes everything. */
  close(): void
}
export interface Replay {
  /** Hands over messages, valid during the call, until `enough` or the end; resolves to whether that was the end. Throws SPOOL_FULL where the disk fails. */
  next(take: (message: Buffer) => void, enough: () => boolean): Promise<boolean>
  close(): void
}

type Part = {
  readonly xid: number
  memory: Output
  readonly aborted: Set<number>
  file: { readonly fd: number; readonly path: string; bytes: number } | undefined
}

/** Deletes what a former process left in the folder. */
export function openSpool(dir: string, limits: SpoolLimits): Spool {
  try {
    mkdirSync(dir, { recursive: true, mode: 0o700 })
    for (const name of readdirSync(dir)) if (name.endsWith('.spool')) rmSync(join(dir, name), { force: true })
  } catch (error) {
    throw full(dir, error)
  }
  return new DirSpool(dir, limits)
}

class DirSpool implements Spool {
  memoryBytes = 0
  diskBytes = 0
  readonly #dir: string
  readonly #limits: SpoolLimits
  readonly #parts = new Map<number, Part>()
  /** A former stream of this process may still be leaving. */
  readonly #name = randomBytes(4).toString('hex')

  constructor(dir: string, limits: SpoolLimits) {
    this.#dir = dir
    this.#limits = limits
  }

  add(xid: number, message: Buffer): void {
    let part = this.#parts.get(xid)
    if (!part) {
      part = { xid, memory: new Output(1024), aborted: new Set(), file: undefined }
      this.#parts.set(xid, part)
    }
    const { memory } = part
    memory.reserve(4 + message.length)
    memory.at = memory.bytes.writeUInt32BE(message.length, memory.at)
    memory.at += message.copy(memory.bytes, memory.at)
    this.memoryBytes += 4 + message.length
    if (this.memoryBytes > this.#limits.memoryBytes) this.#spill()
  }

  abort(xid: number, part: number): void {
    const found = this.#parts.get(xid)
    if (!found) return
    if (xid !== part) return void found.aborted.add(part)
    this.#parts.delete(xid)
    this.#discard(found)
  }

  replay(xid: number): Replay {
    const part = this.#parts.get(xid) ?? { xid, memory: new Output(0), aborted: new Set(), file: undefined }
    this.#parts.delete(xid)
    return new PartReplay(part, () => this.#discard(part))
  }

  close(): void {
    for (const part of this.#parts.values()) this.#discard(part)
    this.#parts.clear()
  }

  #spill(): void {
    let largest: Part | undefined
    for (const part of this.#parts.values()) if (!largest || part.memory.at > largest.memory.at) largest = part
    if (!largest) return
    const { memory, xid } = largest
    const needed = this.diskBytes + memory.at
    if (needed > this.#limits.diskBytes) {
      throw new Failure('SPOOL_FULL', {
        object: this.#dir,
        observed: `transactions in progress need ${needed} bytes`,
        needed: `at most ${this.#limits.diskBytes} bytes`,
        effect: 'The changes are read again from the last acknowledged place',
      })
    }
    try {
      if (!largest.file) {
        const path = join(this.#dir, `${this.#name}-${xid}.spool`)
        largest.file = { fd: openSync(path, 'wx+', 0o600), path, bytes: 0 }
      }
      for (let from = 0; from < memory.at;) {
        const written = writeSync(largest.file.fd, memory.bytes, from, memory.at - from)
        from += written
        largest.file.bytes += written
        this.diskBytes += written
      }
    } catch (error) {
      throw full(this.#dir, error)
    }
    this.memoryBytes -= memory.at
    largest.memory = new Output(1024)
  }

  #discard(part: Part): void {
    this.memoryBytes -= part.memory.at
    part.memory = new Output(0)
    if (!part.file) return
    this.diskBytes -= part.file.bytes
    closeSync(part.file.fd)
    rmSync(part.file.path, { force: true })
    part.file = undefined
  }
}

class PartReplay implements Replay {
  readonly #part: Part
  readonly #discard: () => void
  #piece: Buffer = Buffer.alloc(0)
  /** Read from the file so far, and taken of the piece. */
  #read = 0
  #at = 0
  #inFile: boolean

  constructor(part: Part, discard: () => void) {
    this.#part = part
    this.#discard = discard
    this.#inFile = part.file !== undefined
    if (!this.#inFile) this.#piece = part.memory.bytes.subarray(0, part.memory.at)
  }

  async next(take: (message: Buffer) => void, enough: () => boolean): Promise<boolean> {
    for (;;) {
      while (this.#at + 4 <= this.#piece.length) {
        const end = this.#at + 4 + this.#piece.readUInt32BE(this.#at)
        if (end > this.#piece.length) break
        if (enough()) return false
        const message = this.#piece.subarray(this.#at + 4, end)
        this.#at = end
        const xid = this.#part.aborted.size === 0 ? undefined : messageXid(message)
        if (xid === undefined || !this.#part.aborted.has(xid) || survivesAbort(message)) take(message)
      }
      if (!this.#inFile) return true
      await this.#more()
    }
  }

  close(): void {
    this.#piece = Buffer.alloc(0)
    this.#inFile = false
    this.#discard()
  }

  /** The rest of this piece, and behind it the next one of the file, or what is still in memory. */
  async #more(): Promise<void> {
    const { file, memory } = this.#part
    const rest = this.#piece.subarray(this.#at)
    if (!file || this.#read === file.bytes) {
      this.#inFile = false
      this.#piece = Buffer.concat([rest, memory.bytes.subarray(0, memory.at)])
      this.#at = 0
      return
    }
    const whole = rest.length >= 4 ? 4 + rest.readUInt32BE(0) - rest.length : 0
    const wanted = Math.min(Math.max(pieceBytes, whole), file.bytes - this.#read)
    const piece = Buffer.allocUnsafeSlow(rest.length + wanted)
    rest.copy(piece)
    let filled = rest.length
    while (filled < piece.length) {
      const { bytesRead } = await readAt(file.fd, piece, filled, piece.length - filled, this.#read).catch(
        (error: unknown) => {
          throw full(file.path, error)
        },
      )
      if (bytesRead === 0) throw full(file.path, new Error('the file is shorter than what was written'))
      filled += bytesRead
      this.#read += bytesRead
    }
    this.#piece = piece
    this.#at = 0
  }
}

function full(object: string, error: unknown): Failure {
  const observed = error instanceof Error ? error.message : String(error)
  return new Failure('SPOOL_FULL', { object, observed, cause: error })
}
