import type { Socket } from 'node:net'
import type pg from 'pg'
import { Failure } from '../../src/errors.ts'
import { sqlState } from './errors.ts'

/** What of a connection is looked at, and its types leave out. A socket is exchanged for another one when TLS begins. */
type Inside = { readonly connection: { readonly stream: Socket }; readonly readyForQuery: boolean | null }
type Options = {
  /** For people: which server. */
  readonly object: string
  /** Asks over another connection whether the server works for this session; rejects where that cannot be asked. */
  readonly works: (pid: number, signal: AbortSignal) => Promise<boolean>
  /** An answer is always due, as where we ask again and again; default: while a statement runs. */
  readonly always?: boolean
  readonly silenceMs?: number
}

/** Twice as long, and a third of it for the timer, before a session is given up at the latest. */
const defaultSilenceMs = 12_000
const feeding = new WeakMap<pg.Client, number>()

/**
 * Ends a connection over which nothing will come any more: a network that swallows everything tells nobody, and a firewall
 * that forgot a connection neither. A statement may take as long as it likes: whether the server works on it is asked over
 * another connection. Only what waits for an answer is watched; the rest is noticed when it is next used.
 */
export function watchSilence(
  client: pg.Client,
  { object, works, always = false, silenceMs = defaultSilenceMs }: Options,
): void {
  const inside = client as unknown as Inside & { readonly processID: number }
  const { connection } = inside
  const traffic = (): number => connection.stream.bytesRead + connection.stream.bytesWritten
  const waits = (): boolean =>
    (always || inside.readyForQuery === false) && !connection.stream.isPaused() && !isStarved(client, connection.stream)
  let seen = -1
  let since = performance.now()
  let asking: AbortController | undefined
  const timer = setInterval(() => {
    // Our own questions are no sign of life.
    const now = always ? connection.stream.bytesRead : traffic()
    if (now !== seen || !waits()) {
      seen = now
      since = performance.now()
    } else if (performance.now() - since > silenceMs && asking === undefined) void look()
  }, silenceMs / 3).unref()
  client.once('end', () => {
    clearInterval(timer)
    asking?.abort()
  })

  async function look(): Promise<void> {
    asking = new AbortController()
    const limit = AbortSignal.any([asking.signal, AbortSignal.timeout(silenceMs)])
    const before = seen
    const alive = await works(inside.processID, limit).catch(cannotTell)
    asking = undefined
    const silent = Math.round((performance.now() - since) / 1000)
    since = performance.now()
    if (alive || before !== (always ? connection.stream.bytesRead : traffic())) return
    const observed = `no answer for ${silent} s, and the server does not work on one`
    connection.stream.destroy(new Failure('SERVER_UNREACHABLE', { object, observed }))
  }
}

/** A server that answers, but not this question, such as one that is full, says nothing about our session. One that is starting or that cannot be
 *  reached has none of ours. */
function cannotTell(error: unknown): boolean {
  const state = sqlState(error)
  return state !== undefined && !state.startsWith('57P0')
}

/** While `work` runs the server waits for what we send, and silence is ours where nothing stands to be sent. */
export async function whileFeeding<T>(client: pg.Client, work: () => Promise<T>): Promise<T> {
  feeding.set(client, (feeding.get(client) ?? 0) + 1)
  try {
    return await work()
  } finally {
    feeding.set(client, (feeding.get(client) ?? 1) - 1)
  }
}

function isStarved(client: pg.Client, socket: Socket): boolean {
  return (feeding.get(client) ?? 0) > 0 && socket.writableLength === 0
}
