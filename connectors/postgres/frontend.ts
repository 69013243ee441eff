import { setImmediate } from 'node:timers/promises'
import type { Connection, DatabaseError, Client, Submittable } from 'pg'
import type { Output } from '../../src/output.ts'
import { whileFeeding } from './silence.ts'

/** What a round trip failed with, and how many statements of it had been executed before (none of them is committed). */
export class RoundTripError extends Error {
  override readonly name = 'RoundTripError'
  readonly completed: number
  constructor(completed: number, cause: unknown) {
    super(cause instanceof Error ? cause.message : String(cause), { cause })
    this.completed = completed
  }
}

const sync = 0x53
const binary = 1
const text = 0

/** Ends the pipeline: what was executed since the last one is one transaction. */
export function appendSync(out: Output): void {
  out.reserve(5)
  out.bytes[out.at] = sync
  out.at = out.bytes.writeInt32BE(4, out.at + 1)
}

/** A named prepared statement. */
export function appendParse(out: Output, name: string, sql: string, types: readonly number[]): void {
  const size = 4 + name.length + 1 + Buffer.byteLength(sql) + 1 + 2 + 4 * types.length
  out.reserve(1 + size)
  const { bytes } = out
  bytes[out.at] = 0x50
  let at = bytes.writeInt32BE(size, out.at + 1)
  at += bytes.write(name, at, 'latin1')
  bytes[at++] = 0
  at += bytes.write(sql, at)
  bytes[at++] = 0
  at = bytes.writeInt16BE(types.length, at)
  for (const type of types) at = bytes.writeInt32BE(type | 0, at)
  out.at = at
}

/** Forgets a prepared statement. */
export function appendClose(out: Output, name: string): void {
  const size = 4 + 1 + name.length + 1
  out.reserve(1 + size)
  const { bytes } = out
  bytes[out.at] = 0x43
  let at = bytes.writeInt32BE(size, out.at + 1)
  bytes[at++] = 0x53
  at += bytes.write(name, at, 'latin1')
  bytes[at++] = 0
  out.at = at
}

/** Begins a Bind of `parameters` binary parameters, which follow as int32 length and bytes; returns what `endBind` needs. */
export function beginBind(out: Output, name: string, parameters: number, format: 0 | 1 = binary): number {
  out.reserve(16 + name.length)
  const { bytes } = out
  const start = out.at
  bytes[start] = 0x42
  let at = start + 5
  bytes[at++] = 0
  at += bytes.write(name, at, 'latin1')
  bytes[at++] = 0
  at = bytes.writeInt16BE(1, at)
  at = bytes.writeInt16BE(format, at)
  out.at = bytes.writeUInt16BE(parameters, at)
  return start
}

/** Ends the Bind that began at `start`, and executes it. */
export function endBind(out: Output, start: number): void {
  out.reserve(12)
  const { bytes } = out
  let at = bytes.writeInt16BE(0, out.at)
  bytes.writeInt32BE(at - start - 1, start + 1)
  bytes[at] = 0x45
  at = bytes.writeInt32BE(9, at + 1)
  bytes[at++] = 0
  out.at = bytes.writeInt32BE(0, at)
}

/** Bind and Execute with a few parameters as text. */
export function appendTextBind(out: Output, name: string, values: readonly (string | null)[]): void {
  const start = beginBind(out, name, values.length, text)
  for (const value of values) {
    const size = value === null ? -1 : Buffer.byteLength(value)
    out.reserve(4 + Math.max(size, 0))
    out.at = out.bytes.writeInt32BE(size, out.at)
    if (value !== null) out.at += out.bytes.write(value, out.at)
  }
  endBind(out, start)
}

/** Destroys the connection; what it had not committed is rolled back by the server. */
export function breakOff(client: Client): void {
  connectionOf(client).stream.destroy()
}

function connectionOf(client: Client): Connection {
  // `connection` is public in the library and missing in its types.
  return (client as Client & { readonly connection: Connection }).connection
}

/** Answers of one Submittable: counts completed statements, collects the last row's first field, and settles once. Nobody settles before the
 *  socket has taken every byte: after an early error the caller would otherwise write the next batch over one still being sent. */
class Exchange implements Submittable {
  readonly #begin: (stream: Connection['stream'], flushed: (error?: Error | null) => void) => void
  readonly #resolve: (exchange: Exchange) => void
  readonly #reject: (error: RoundTripError) => void
  completed = 0
  /** Command tag of the last statement completed. */
  tag = ''
  #flushed = false
  #ready = false
  #failed = false
  #error: unknown
  onCopyIn: (() => void) | undefined
  constructor(
    begin: (stream: Connection['stream'], flushed: (error?: Error | null) => void) => void,
    resolve: (exchange: Exchange) => void,
    reject: (error: RoundTripError) => void,
  ) {
    this.#begin = begin
    this.#resolve = resolve
    this.#reject = reject
  }
  get failed(): boolean {
    return this.#failed
  }
  submit(connection: Connection): void {
    this.#begin(connection.stream, (error) => {
      this.#flushed = true
      if (error) this.handleError(error)
      else this.#settle()
    })
  }
  /** More bytes are on their way: `flushed` will be called again. */
  sending(): void {
    this.#flushed = false
  }
  handleError(error: unknown): void {
    if (!this.#failed) this.#error = error
    this.#failed = true
    // The client has already let go of us: no ReadyForQuery will be reported.
    this.#ready = true
    // A broken connection never flushes.
    if (!isServerError(error)) this.#flushed = true
    this.#settle()
  }
  handleReadyForQuery(): void {
    this.#ready = true
    this.#settle()
  }
  handleCommandComplete(message: { readonly text: string }): void {
    this.completed++
    this.tag = message.text
  }
  handleEmptyQuery(): void {
    this.completed++
  }
  handleCopyInResponse(): void {
    this.onCopyIn?.()
  }
  handlePortalSuspended(): void {}
  handleRowDescription(): void {}
  handleDataRow(): void {}
  handleCopyData(): void {}
  #settle(): void {
    if (!this.#ready || !this.#flushed) return
    if (this.#failed) this.#reject(new RoundTripError(this.completed, this.#error))
    else this.#resolve(this)
  }
}

function isServerError(error: unknown): error is DatabaseError {
  return error instanceof Error && 'severity' in error && error.severity !== undefined
}

/** Sends the frames gathered in `out`, which end with a Sync, and empties it. Resolves when the server has answered all of them, to the number of
 *  statements executed; rejects with a RoundTripError, then nothing since the last Sync is committed. The bytes may be reused afterwards. */
export async function roundTrip(client: Client, out: Output): Promise<number> {
  const frames = out.bytes.subarray(0, out.at)
  out.at = 0
  return new Promise((resolve, reject) => {
    client.query(
      new Exchange(
        (stream, flushed) => void stream.write(frames, flushed),
        (exchange) => resolve(exchange.completed),
        reject,
      ),
    )
  })
}

const copyDone = Buffer.from([0x63, 0, 0, 0, 4])

/** Runs `sql`, a COPY … FROM STDIN, with CopyData frames cut anywhere; each piece is lent until the next pull and written before it. Resolves to
 *  the rows copied. If it rejects, frames may be half sent: the connection is broken off. */
export async function copyIn(client: Client, sql: string, frames: AsyncIterable<Uint8Array>): Promise<number> {
  return new Promise((resolve, reject) => {
    const exchange = new Exchange(
      (stream, flushed) => {
        const body = Buffer.from(`${sql}\0`)
        const head = Buffer.allocUnsafe(5)
        head[0] = 0x51
        head.writeInt32BE(body.length + 4, 1)
        stream.write(Buffer.concat([head, body]))
        // These bytes are used by nobody else; what the pump sends is.
        flushed()
        const pump = async (): Promise<void> => {
          let turn = 0
          for await (const piece of frames) {
            // A source that never waits and a socket that always takes would keep us from hearing the server's error.
            if (++turn % 16 === 0) await setImmediate()
            if (exchange.failed) return flushed()
            await new Promise<void>((written, failed) => {
              stream.write(piece, (error) => (error ? failed(error) : written()))
            })
          }
          stream.write(copyDone, flushed)
        }
        exchange.onCopyIn = () => {
          exchange.sending()
          whileFeeding(client, pump).catch((error: unknown) => exchange.handleError(error))
        }
      },
      ({ tag }) => resolve(Number(tag.slice('COPY '.length))),
      (error) => {
        breakOff(client)
        reject(error)
      },
    )
    client.query(exchange)
  })
}
