import type { Client } from 'pg'
import { close } from './config.ts'
import { mapError } from './errors.ts'

export interface Control {
  use<T>(signal: AbortSignal, work: (client: Client) => Promise<T>): Promise<T>
  close(): Promise<void>
}

/** One connection for short work, opened again after it was lost; calls take turns. What it commits is on disk. */
export function controlConnection(connect: (signal: AbortSignal) => Promise<Client>): Control {
  let client: Client | undefined
  let turn: Promise<unknown> = Promise.resolve()
  let closed = false
  const open = async (signal: AbortSignal): Promise<Client> => {
    const fresh = await connect(signal)
    fresh.on('end', () => {
      if (client === fresh) client = undefined
    })
    try {
      const { rows } = await fresh.query<{ commit: string }>(`select current_setting('synchronous_commit') as commit`)
      if (rows[0]?.commit === 'off') await fresh.query('set synchronous_commit = on')
    } catch (error) {
      await close(fresh)
      throw mapError(error)
    }
    if (closed) await close(fresh)
    return fresh
  }
  const run = async <T>(signal: AbortSignal, work: (client: Client) => Promise<T>): Promise<T> => {
    signal.throwIfAborted()
    client ??= await open(signal)
    const used = client
    const abort = (): void => {
      if (client === used) client = undefined
      used.end().catch(() => {})
    }
    signal.addEventListener('abort', abort, { once: true })
    try {
      return await work(used)
    } catch (error) {
      if (signal.aborted) throw signal.reason
      throw mapError(error)
    } finally {
      signal.removeEventListener('abort', abort)
    }
  }
  return {
    use<T>(signal: AbortSignal, work: (client: Client) => Promise<T>): Promise<T> {
      const result = turn.then(async () => await run(signal, work))
      turn = result.catch(() => {})
      return result
    },
    async close() {
      closed = true
      await turn
      if (client) await close(client)
    },
  }
}
