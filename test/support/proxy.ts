import { createServer, connect, type AddressInfo, type Socket } from 'node:net'

/** A TCP proxy on 127.0.0.1 between two ends of a test, to hurt what runs between them. */
export interface Proxy extends AsyncDisposable {
  readonly port: number
  /** Open pairs of connections. */
  readonly connections: number
  /** Black hole: bytes wait in both directions, new connections are taken and wait too. Nobody is told. */
  pause(): void
  resume(): void
  /** Resets every open connection at both ends. */
  cut(): void
  /** While true, new connections are reset at once. Open ones go on. */
  refuse(on: boolean): void
  /** Holds each piece of data back for this long, in both directions; 0 ends it. */
  delay(ms: number): void
  /** Half-open: what the target answers is thrown away from now on; what the client sends arrives. */
  dropAnswers(on: boolean): void
  /** Looks at every piece on its way, as TCP brings it; undefined ends it. */
  watch(look: Look | undefined): void
  close(): Promise<void>
}

/** What becomes of a piece: passed on; lost, with both ends none the wiser; or lost with the connection, which is reset at both ends. `connection`: a
 *  number that no other has. */
export type Look = (piece: Buffer, isAnswer: boolean, connection: number) => 'pass' | 'lose' | 'cut'

/** Resolves when the proxy takes connections. Its connections and listener live until `close`. */
export async function startProxy(targetPort: number, targetHost = '127.0.0.1'): Promise<Proxy> {
  const pairs = new Set<{ client: Socket; target: Socket }>()
  let paused = false
  let refusing = false
  let droppingAnswers = false
  let delayMs = 0
  let look: Look | undefined
  let number = 0

  const server = createServer({ noDelay: true }, (client) => {
    if (refusing) {
      client.on('error', () => undefined)
      client.resetAndDestroy()
      return
    }
    const target = connect({ port: targetPort, host: targetHost, noDelay: true })
    const pair = { client, target }
    pairs.add(pair)
    number++
    join(client, target, false, number)
    join(target, client, true, number)
    client.once('close', () => pairs.delete(pair))
    if (paused) {
      client.pause()
      target.pause()
    }
  })

  function join(from: Socket, to: Socket, isAnswer: boolean, connection: number): void {
    from.on('data', (data) => {
      if (isAnswer && droppingAnswers) return
      const fate = look?.(data, isAnswer, connection)
      if (fate === 'lose') return
      if (fate === 'cut') {
        from.resetAndDestroy()
        to.resetAndDestroy()
        return
      }
      if (delayMs > 0) return void setTimeout(() => to.write(data), delayMs)
      if (to.write(data)) return
      from.pause()
      to.once('drain', () => {
        if (!paused) from.resume()
      })
    })
    from.once('end', () => setTimeout(() => to.end(), delayMs))
    from.once('error', () => to.resetAndDestroy())
    from.once('close', () => setTimeout(() => to.destroy(), delayMs))
  }

  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(0, '127.0.0.1', resolve)
  })
  const { port } = server.address() as AddressInfo

  function cut(): void {
    for (const { client, target } of pairs) {
      client.resetAndDestroy()
      target.resetAndDestroy()
    }
  }

  const proxy: Proxy = {
    port,
    get connections() {
      return pairs.size
    },
    pause() {
      paused = true
      for (const { client, target } of pairs) {
        client.pause()
        target.pause()
      }
    },
    resume() {
      paused = false
      for (const { client, target } of pairs) {
        client.resume()
        target.resume()
      }
    },
    cut,
    refuse(on) {
      refusing = on
    },
    delay(ms) {
      delayMs = ms
    },
    dropAnswers(on) {
      droppingAnswers = on
    },
    watch(next) {
      look = next
    },
    async close() {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()))
      cut()
      await closed
    },
    [Symbol.asyncDispose]: () => proxy.close(),
  }
  return proxy
}
