import { createServer, connect, type AddressInfo, type Socket } from 'node:net'
import { setTimeout } from 'node:timers/promises'

/** A TCP proxy on 127.0.0.1 between two ends of a test, to hurt what runs between them. */
export interface Proxy extends AsyncDisposable {
  readonly port: number
  /** Open pairs of connections. */
  readonly connections: number
  /** Pieces that were thrown away so far. */
  readonly lost: number
  /** Black hole: bytes wait in both directions, new connections are taken and wait too. Nobody is told. */
  pause(): void
  resume(): void
  /** Resets every open connection at both ends. */
  cut(): void
  /** While true, new connections are reset at once. Open ones go on. */
  refuse(on: boolean): void
  /** Holds each piece of data back for this long, in both directions; 0 ends it. */
  delay(ms: number): void
  /** Half-open: what the target answers is thrown away while true; what the client sends arrives. A connection that lost something stays so. */
  dropAnswers(on: boolean): void
  /** Half-open in the other direction. */
  dropRequests(on: boolean): void
  /** Black hole that never gives back: both of these, for new connections too. */
  swallow(on: boolean): void
  /** Each n-th piece of answers is lost and its connection reset: what it answered has happened. 0 ends it. */
  loseAnswers(n: number): void
  /** Looks at every piece on its way, as TCP brings it; undefined ends it. */
  watch(look: Look | undefined): void
  /** New connections go to this port. */
  redirect(port: number): void
  close(): Promise<void>
}

/** What becomes of a piece: passed on; lost, with both ends none the wiser; or lost with the connection, which is reset at both ends. `connection`: a
 *  number that no other has. */
export type Look = (piece: Buffer, isAnswer: boolean, connection: number) => 'pass' | 'lose' | 'cut'

type Direction = { dropping: boolean }
type Pair = { readonly client: Socket; readonly target: Socket; spared: boolean; readonly number: number }

/** Resolves when the proxy takes connections, on `port` or any. Its connections and listener live until `close`. `only`: those whose first bytes are such
 *  are hurt, the others go through whatever is done; `refuse` and `pause` know no difference. */
export async function startProxy(
  firstPort: number,
  targetHost = '127.0.0.1',
  { port: wanted = 0, only }: { readonly port?: number; readonly only?: (first: Buffer) => boolean } = {},
): Promise<Proxy> {
  const pairs = new Set<Pair>()
  let targetPort = firstPort
  let paused = false
  let refusing = false
  let delayMs = 0
  let loseEvery = 0
  let answers = 0
  let lost = 0
  let look: Look | undefined
  let number = 0
  const toTarget: Direction = { dropping: false }
  const toClient: Direction = { dropping: false }

  const server = createServer({ noDelay: true }, (client) => {
    if (refusing) {
      client.on('error', () => undefined)
      client.resetAndDestroy()
      return
    }
    const target = connect({ port: targetPort, host: targetHost, noDelay: true })
    const pair: Pair = { client, target, spared: false, number: ++number }
    pairs.add(pair)
    if (only) client.once('data', (first) => (pair.spared = !only(first)))
    join(pair, client, target, toTarget)
    join(pair, target, client, toClient)
    client.once('close', () => pairs.delete(pair))
    if (paused) {
      client.pause()
      target.pause()
    }
  })

  function join(pair: Pair, from: Socket, to: Socket, direction: Direction): void {
    let deaf = false
    let delayed: Promise<void> | undefined
    /** At its time, and behind what was delayed before. */
    const inTurn = (work: () => void): void => {
      if ((delayMs === 0 || pair.spared) && delayed === undefined) return work()
      const due = setTimeout(delayMs)
      const mine: Promise<void> = Promise.all([delayed, due]).then(() => {
        if (delayed === mine) delayed = undefined
        work()
      })
      delayed = mine
    }
    from.on('data', (data) => {
      deaf ||= direction.dropping && !pair.spared
      if (deaf) return void lost++
      const fate = look?.(data, direction === toClient, pair.number)
      if (fate === 'lose') return
      const isLost = direction === toClient && loseEvery > 0 && !pair.spared && ++answers % loseEvery === 0
      if (fate === 'cut' || isLost) {
        reset(from)
        return reset(to)
      }
      inTurn(() => {
        if (to.destroyed || to.write(data)) return
        from.pause()
        to.once('drain', () => {
          if (!paused) from.resume()
        })
      })
    })
    from.once('end', () => inTurn(() => deaf || (direction.dropping && !pair.spared) || to.end()))
    from.once('error', () => reset(to))
    from.once('close', () => inTurn(() => to.destroy()))
  }

  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(wanted, '127.0.0.1', resolve)
  })
  const { port } = server.address() as AddressInfo

  function cut(): void {
    for (const { client, target, spared } of pairs) {
      if (spared) continue
      reset(client)
      reset(target)
    }
  }

  const proxy: Proxy = {
    port,
    get connections() {
      return pairs.size
    },
    get lost() {
      return lost
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
      toClient.dropping = on
    },
    dropRequests(on) {
      toTarget.dropping = on
    },
    swallow(on) {
      toClient.dropping = toTarget.dropping = on
    },
    loseAnswers(n) {
      loseEvery = n
    },
    watch(next) {
      look = next
    },
    redirect(port) {
      targetPort = port
    },
    async close() {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()))
      for (const pair of pairs) pair.spared = false
      cut()
      await closed
    },
    [Symbol.asyncDispose]: () => proxy.close(),
  }
  return proxy
}

/** libuv refuses to reset what is being shut down; Node then never closes that handle, and turns for ever when the process ends. */
function reset(socket: Socket): void {
  if (socket.writableEnded) socket.destroy()
  else socket.resetAndDestroy()
}
