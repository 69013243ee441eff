import type { Socket } from 'node:net'
import type pg from 'pg'

/** What the driver has and its types leave out: the connection under a client, and queries that write and read by themselves. */
type Wire = { readonly stream: Socket; query(text: string): void }
type DataListener = (chunk: Buffer) => void
type Submittable = {
  submit(connection: Wire): void
  handleError(error: Error): void
  handleReadyForQuery(): void
  handleCommandComplete(): void
}

const copyData = 0x64
/** CopyOutResponse, notice, parameter status and notification: may stand before and between the data. */
const between: ReadonlySet<number> = new Set([0x48, 0x4e, 0x53, 0x41])
const readAhead = 1 << 20

/** Cuts the connection: the only way to end a statement that the server is still answering. */
export function destroy(client: pg.Client): void {
  const wire = (client as unknown as { connection: Wire }).connection
  wire.stream.destroy()
}

/**
 * Runs one `COPY … TO STDOUT` and yields its CopyData frames (`d`, length, payload) as the pieces of the socket they came
 * in: not aligned to frames, nothing between or behind them. Reads ahead at most 1 MiB. The client is free again once the
 * iterator has ended; if it is abandoned or the signal aborts, the client's connection is cut. Rejects with the driver's error.
 */
export async function* copyOut(
  client: pg.Client,
  sql: string,
  signal: AbortSignal,
): AsyncGenerator<Buffer, void, void> {
  signal.throwIfAborted()
  const pieces: Buffer[] = []
  let bytes = 0
  let ended = false
  let failure: Error | undefined
  let wake: (() => void) | undefined
  let stream: Socket | undefined
  let owners: DataListener[] = []
  let left = 0
  let kind = 0
  let lengthBytes = 4
  const settle = (error?: Error): void => {
    failure ??= error
    ended = true
    wake?.()
  }
  const push = (piece: Buffer): void => {
    if (piece.length === 0) return
    pieces.push(piece)
    bytes += piece.length
    if (bytes >= readAhead) stream?.pause()
    wake?.()
  }
  const giveBack = (rest?: Buffer): void => {
    if (!stream) return
    stream.off('data', walk)
    for (const owner of owners) stream.on('data', owner)
    const to = owners
    owners = []
    if (rest) for (const owner of to) owner.call(stream, rest)
    stream.resume()
  }
  // Only the frames' headers are looked at; a piece is cut only around what is not data.
  const walk = (chunk: Buffer): void => {
    let from = 0
    let at = 0
    while (at < chunk.length) {
      if (lengthBytes < 4) {
        left = ((left << 8) | (chunk[at++] ?? 0)) >>> 0
        if (++lengthBytes === 4) left -= 4
      } else if (left > 0) {
        const step = Math.min(left, chunk.length - at)
        left -= step
        at += step
      } else {
        const next = chunk[at] ?? 0
        if (next !== copyData && !between.has(next)) {
          if (kind === copyData) push(chunk.subarray(from, at))
          giveBack(chunk.subarray(at))
          return
        }
        if ((next === copyData) !== (kind === copyData)) {
          if (kind === copyData) push(chunk.subarray(from, at))
          from = at
        }
        kind = next
        lengthBytes = 0
        left = 0
        at++
      }
    }
    if (kind === copyData) push(chunk.subarray(from))
  }
  const query: Submittable = {
    submit(connection) {
      stream = connection.stream
      owners = stream.listeners('data') as DataListener[]
      for (const owner of owners) stream.off('data', owner)
      stream.on('data', walk)
      connection.query(sql)
    },
    handleError: settle,
    handleReadyForQuery: () => settle(),
    handleCommandComplete() {},
  }
  const abort = (): void => {
    destroy(client)
    settle(signal.reason instanceof Error ? signal.reason : new Error('aborted', { cause: signal.reason }))
  }
  signal.addEventListener('abort', abort, { once: true })
  try {
    ;(client as unknown as { query(query: Submittable): void }).query(query)
    for (;;) {
      const piece = pieces.shift()
      if (piece) {
        bytes -= piece.length
        if (bytes < readAhead && stream?.isPaused()) stream.resume()
        yield piece
      } else if (ended) {
        if (failure !== undefined) throw failure
        return
      } else await new Promise<void>((resolve) => void (wake = resolve))
    }
  } finally {
    signal.removeEventListener('abort', abort)
    if (!ended) destroy(client)
  }
}
