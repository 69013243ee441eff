import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import type pg from 'pg'
import { LogicalReplicationService } from 'pg-logical-replication'
import type { ChangeStream, SourceEvent } from '../../src/connector.ts'
import { asFailure, Failure } from '../../src/errors.ts'
import { origin, type Position } from '../../src/model.ts'
import { changeQueue } from './change-queue.ts'
import { mapError } from './errors.ts'
import {
  decoder,
  Frame,
  readStreamAbort,
  readStreamCommit,
  readStreamStart,
  type Decoder,
  type StreamCommit,
} from './pgoutput.ts'
import { lsnOf, parseLsn, positionOf, printLsn } from './position.ts'
import type { Tables } from './history.ts'
import { openSpool, type Replay, type Spool, type SpoolLimits } from './spool.ts'

export type StreamOptions = {
  readonly client: pg.ClientConfig
  readonly slot: string
  readonly publication: string
  /** As `show server_version_num` says. */
  readonly serverVersion: number
  readonly after: Position
  /** What the slot has confirmed: acknowledged until more is. */
  readonly confirmed: bigint
  readonly tables: Tables
  readonly ours: (origin: string) => boolean
  /** Folder of this stream alone. */
  readonly dir: string
  /** Runs on the connection before the stream starts; its rejection is the opening's. */
  readonly prepare?: (client: pg.Client) => Promise<void>
  readonly demandHeld?: (published: Position) => Promise<void>
  readonly statusIntervalMs?: number
  readonly spool?: SpoolLimits
  readonly readAheadBytes?: number
  /** Ends the connection when the server, which is asked for a sign of life with each status, is gone. */
  readonly watch?: (client: pg.Client) => void
}

const defaults = {
  statusIntervalMs: 5_000,
  readAheadBytes: 4 << 20,
  spool: { memoryBytes: 8 << 20, diskBytes: 64 * 2 ** 30 },
}
/** Answers to a server that asks without end come no more often. */
const answerPauseMs = 50
/** A server that keeps up sends each row by itself, and hearing of it costs more than the row: while pieces follow each other so closely (in ms), the
 *  socket rests after so many of them, and many rows come as one piece. */
const dense = { pieces: 16, withinMs: 8, pieceBytes: 4096, restMs: 2 }

/** Starts the stream; resolves once the server has given it the slot, so that no other can acknowledge. */
export async function openStream(options: StreamOptions, signal: AbortSignal): Promise<ChangeStream> {
  signal.throwIfAborted()
  const stream = new PgoutputStream(options, signal)
  try {
    await stream.start()
    return stream
  } catch (error) {
    await stream[Symbol.asyncDispose]()
    throw error
  }
}

class PgoutputStream implements ChangeStream {
  readonly #options: StreamOptions
  readonly #signal: AbortSignal
  readonly #readAhead: number
  readonly #service: LogicalReplicationService
  readonly #queue = changeQueue()
  readonly #decoder: Decoder
  readonly #spool: Spool
  #socket: Duplex | undefined
  /** The transaction in progress whose messages come now. */
  #inProgress: number | undefined
  #replay: { readonly replay: Replay; readonly commit: StreamCommit } | undefined
  /** What arrived after the commit of a transaction that is being replayed; the socket stands still meanwhile. */
  #backlog: Buffer[] = []
  #backlogBytes = 0
  #replaying: Promise<void> | undefined
  /** A message whose tables are being settled; what comes after it waits in the backlog, or in its transaction. */
  #unsettled: { readonly message: Buffer; readonly streamed: boolean } | undefined
  #settling: Promise<void> | undefined
  #failure: { readonly reason: unknown } | undefined
  #wake: (() => void) | undefined
  #closed = false
  readonly #closing = new AbortController()
  #acknowledged: bigint
  /** Sent to the server; never goes back. */
  #flushed: bigint
  #askedAt = 0n
  #answeredAt = 0
  #answer: NodeJS.Timeout | undefined
  #statusTimer: NodeJS.Timeout | undefined
  #rest: NodeJS.Timeout | undefined
  #pieces = 0
  #piecesSince = 0
  readonly #onAbort = (): void => this.#fail(this.#signal.reason)

  constructor(options: StreamOptions, signal: AbortSignal) {
    this.#options = options
    this.#signal = signal
    this.#readAhead = options.readAheadBytes ?? defaults.readAheadBytes
    this.#acknowledged = this.#flushed = options.confirmed
    this.#decoder = decoder({
      queue: this.#queue,
      tables: options.tables,
      ours: options.ours,
      after: options.after,
    })
    this.#spool = openSpool(join(options.dir, 'transactions'), options.spool ?? defaults.spool)
    // Its automatic and timed answers acknowledge what was received, not what is durable.
    this.#service = new LogicalReplicationService(options.client, { acknowledge: { auto: false, timeoutSeconds: 0 } })
  }

  async start(): Promise<void> {
    const { after, confirmed, slot } = this.#options
    const from = after === origin ? confirmed : lsnOf(after)
    const service = this.#service
    const plugin = {
      name: 'pgoutput',
      options: {},
      start: async (client: pg.Client, _slot: string, lsn: string): Promise<unknown> => {
        this.#options.watch?.(client)
        await this.#options.prepare?.(client)
        this.#socket = socketOf(client)
        this.#socket.on('data', (piece: Buffer) => this.#count(piece.length))
        return await client.query(this.#startCommand(lsn))
      },
      parse: (message: Buffer): void => this.#receive(message),
    }
    service.on('heartbeat', (lsn, _clock, asked) => this.#heartbeat(parseLsn(lsn), asked))
    this.#signal.addEventListener('abort', this.#onAbort, { once: true })
    await new Promise<void>((resolve, reject) => {
      const fail = (error: unknown): void => {
        const failure = this.#closed ? error : streamFailure(error, slot)
        reject(failure)
        this.#fail(failure)
      }
      this.#wake = () => this.#failure && reject(this.#failure.reason)
      service.on('error', fail)
      service.on('start', resolve)
      service
        .subscribe(plugin, slot, printLsn(from))
        .then(
          () =>
            fail(
              new Failure('SERVER_UNREACHABLE', { object: `slot ${slot}`, observed: 'the server ended the stream' }),
            ),
          fail,
        )
    })
    this.#wake = undefined
    // With statuses like these the server has no reason of its own to say anything: it is asked.
    this.#statusTimer = setInterval(() => this.#send(true), this.#options.statusIntervalMs ?? defaults.statusIntervalMs)
    this.#send()
  }

  get waiting(): boolean {
    return !this.#queue.empty || this.#replay !== undefined || this.#failure !== undefined
  }

  ack(position: Position): void {
    const place = lsnOf(position)
    if (place <= this.#acknowledged) return
    this.#acknowledged = place
    this.#answerSoon()
  }

  async demandHeld(published: Position): Promise<void> {
    await this.#options.demandHeld?.(published)
  }

  [Symbol.asyncIterator](): AsyncIterator<SourceEvent> {
    return {
      next: async () => {
        const value = await this.#next()
        return value ? { value, done: false } : { value: undefined, done: true }
      },
      return: async () => {
        await this[Symbol.asyncDispose]()
        return { value: undefined, done: true }
      },
    }
  }

  async #next(): Promise<SourceEvent | undefined> {
    for (;;) {
      if (this.#closed) return undefined
      if (this.#signal.aborted) throw this.#signal.reason
      const event = this.#queue.pull()
      this.#flow()
      if (event) return event
      // What was decoded before the failure is good, and was given first.
      if (this.#failure) throw this.#failure.reason
      if (this.#settling) await this.#settling
      else if (this.#replay) {
        this.#replaying = this.#continueReplay()
        await this.#replaying
      } else {
        await new Promise<void>((resolve) => (this.#wake = resolve))
        this.#wake = undefined
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    this.#closing.abort()
    clearInterval(this.#statusTimer)
    clearTimeout(this.#answer)
    clearTimeout(this.#rest)
    this.#signal.removeEventListener('abort', this.#onAbort)
    this.#wake?.()
    await this.#settling
    await this.#replaying?.catch(() => {})
    this.#replay?.replay.close()
    this.#spool.close()
    // A paused socket would never report its end.
    this.#socket?.destroy()
    await this.#service.stop().catch(() => {})
  }

  #startCommand(lsn: string): string {
    const { slot, publication, serverVersion } = this.#options
    const options = [
      `proto_version '${serverVersion >= 160_000 ? 4 : serverVersion >= 150_000 ? 3 : 2}'`,
      `publication_names '${quoteName(publication).replaceAll("'", "''")}'`,
      "binary 'false'",
      "messages 'true'",
      "streaming 'on'",
    ]
    if (serverVersion >= 160_000) options.push("origin 'any'")
    return `START_REPLICATION SLOT ${quoteName(slot)} LOGICAL ${lsn} (${options.join(', ')})`
  }

  /** Called from the socket's data event for each message, whose bytes are used again: never throws. */
  #receive(message: Buffer): void {
    if (this.#failure || this.#closed) return
    try {
      if (this.#replay || this.#unsettled) {
        this.#backlog.push(Buffer.from(message))
        this.#backlogBytes += message.length
      } else this.#dispatch(message)
    } catch (error) {
      this.#fail(asFailure(error))
    }
    if (this.#wake && !this.#queue.empty) this.#wake()
    this.#flow()
  }

  #dispatch(message: Buffer): void {
    switch (message[0]) {
      case Frame.streamStart:
        if (this.#inProgress !== undefined) throw new Failure('STREAM_MALFORMED', { observed: 'a stream in a stream' })
        this.#inProgress = readStreamStart(message)
        return
      case Frame.streamStop:
        this.#inProgress = undefined
        return
      case Frame.streamCommit: {
        const commit = readStreamCommit(message)
        this.#decoder.begin(commit)
        this.#replay = { commit, replay: this.#spool.replay(commit.xid) }
        this.#wake?.()
        return
      }
      case Frame.streamAbort: {
        const { xid, part } = readStreamAbort(message)
        return this.#spool.abort(xid, part)
      }
      default:
        if (this.#inProgress === undefined) this.#decode(message, false)
        else this.#spool.add(this.#inProgress, message)
    }
  }

  #decode(message: Buffer, streamed: boolean): void {
    if (this.#decoder.decode(message, streamed)) return
    this.#unsettled = { message: Buffer.from(message), streamed }
    this.#settling = this.#settle()
    this.#wake?.()
  }

  /** The message again, once its tables are settled, and what waited behind it. */
  async #settle(): Promise<void> {
    try {
      for (let waits = this.#unsettled; waits !== undefined; waits = this.#unsettled) {
        await this.#options.tables.settle(AbortSignal.any([this.#signal, this.#closing.signal]))
        if (this.#closed) return
        if (this.#decoder.decode(waits.message, waits.streamed)) this.#unsettled = undefined
      }
      this.#settling = undefined
      if (this.#replay === undefined) this.#catchUp()
    } catch (error) {
      this.#settling = undefined
      this.#fail(asFailure(error))
    }
    this.#wake?.()
  }

  #catchUp(): void {
    const backlog = this.#backlog
    this.#backlog = []
    this.#backlogBytes = 0
    for (const message of backlog) this.#receive(message)
  }

  /** Decodes more of the committed transaction, up to about a batch; at its end what arrived meanwhile. */
  async #continueReplay(): Promise<void> {
    const current = this.#replay
    if (!current) return
    try {
      const { replay, commit } = current
      const take = (message: Buffer): void => this.#decode(message, true)
      const enough = (): boolean => this.#queue.bytes > 1 << 20 || this.#unsettled !== undefined
      if (!(await replay.next(take, enough)) || this.#unsettled !== undefined) return
      replay.close()
      this.#decoder.commit(commit.position)
      this.#replay = undefined
      this.#catchUp()
    } catch (error) {
      current.replay.close()
      this.#replay = undefined
      this.#fail(asFailure(error))
    }
  }

  /** Backpressure: the socket is left alone while enough is held. Answers go on by the timer. */
  #flow(): void {
    const socket = this.#socket
    if (!socket) return
    const held = this.#queue.bytes + this.#backlogBytes
    if (this.#replay !== undefined || this.#unsettled !== undefined || held > this.#readAhead) {
      if (!socket.isPaused()) socket.pause()
    } else if (socket.isPaused() && held <= this.#readAhead / 2 && this.#rest === undefined) socket.resume()
  }

  /** One more piece of the socket, after its messages. */
  #count(bytes: number): void {
    if (bytes > dense.pieceBytes) this.#pieces = 0
    else if (++this.#pieces >= dense.pieces) {
      const now = performance.now()
      const together = now - this.#piecesSince <= dense.withinMs
      this.#pieces = 0
      this.#piecesSince = now
      if (!together || this.#closed || this.#failure || this.#rest !== undefined) return
      this.#socket?.pause()
      this.#rest = setTimeout(() => {
        this.#rest = undefined
        this.#flow()
      }, dense.restMs)
    }
  }

  /** `end`: all before it was sent to us. */
  #heartbeat(end: bigint, asked: boolean): void {
    if (!asked || this.#closed) return
    // A server that shuts down waits until all is acknowledged: what lies behind the last event is so by this one.
    const idle =
      !this.#decoder.open &&
      this.#inProgress === undefined &&
      this.#replay === undefined &&
      this.#unsettled === undefined
    const before = positionOf(end - 1n)
    if (idle && before > this.#decoder.reached && lsnOf(before) > this.#acknowledged) {
      this.#askedAt = end
      this.#decoder.prompt(before)
      this.#wake?.()
    }
    this.#answerSoon()
  }

  #answerSoon(): void {
    if (this.#answer !== undefined || this.#closed) return
    const since = performance.now() - this.#answeredAt
    if (since >= answerPauseMs) this.#send()
    else this.#answer = setTimeout(() => this.#send(), answerPauseMs - since)
  }

  /** Tells the server what is durable. */
  #send(ask = false): void {
    clearTimeout(this.#answer)
    this.#answer = undefined
    if (this.#closed || this.#failure) return
    this.#answeredAt = performance.now()
    // The byte before the end was acknowledged, and nothing lies between: the server may be told the end itself.
    const all = this.#askedAt > 0n && this.#acknowledged === this.#askedAt - 1n
    const place = all ? this.#askedAt : this.#acknowledged
    if (place > this.#flushed) this.#flushed = place
    // The library adds one to what it is given.
    void this.#service.acknowledge(printLsn(this.#flushed - 1n), ask)
  }

  #fail(reason: unknown): void {
    if (this.#failure || this.#closed) return
    this.#failure = { reason }
    clearInterval(this.#statusTimer)
    this.#socket?.destroy()
    this.#wake?.()
  }
}

/** The library keeps its connection to itself; the plugin is handed the client. */
function socketOf(client: pg.Client): Duplex {
  const { connection } = client as unknown as { readonly connection?: { readonly stream?: Duplex } }
  if (!connection?.stream) throw new Failure('UNSUPPORTED', { observed: 'the driver has no socket where it had one' })
  return connection.stream
}

function quoteName(name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}

function streamFailure(error: unknown, slot: string): unknown {
  if (error instanceof Failure) return error
  const object = `slot ${slot}`
  const { code, message } = error as { readonly code?: unknown; readonly message?: unknown }
  const facts = { object, observed: String(message), cause: error }
  // object_not_in_prerequisite_state: invalidated; undefined_file: its log is gone; undefined_object: dropped.
  if (code === '55000' && /recovery/.test(String(message))) return new Failure('SERVER_UNREACHABLE', facts)
  if (code === '55000' || code === '58P01') return new Failure('SLOT_LOST', facts)
  if (code === '42704') {
    return new Failure(String(message).includes('publication') ? 'PUBLICATION_CHANGED' : 'SLOT_LOST', facts)
  }
  if (code === '55006') return new Failure('SLOT_IN_USE', facts)
  return mapError(error, object)
}
