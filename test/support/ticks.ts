import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from './postgres.ts'
import { connected } from './shop.ts'

/** A row every 100 ms at the source, looked for at the target: how long nothing came through. */
export interface Ticks extends AsyncDisposable {
  /** The age, in seconds, of the newest row that had arrived when it was at its oldest, since the last call. */
  worst(): number
  /** Resolves once a row written after the call has arrived; rejects after `seconds`. */
  through(seconds: number): Promise<void>
  stop(): Promise<void>
}

/** To be called before the pipeline begins. */
export async function createTicks(source: string): Promise<void> {
  await sql(source, 'create table tick (n int primary key, at timestamptz not null default clock_timestamp())')
}

/** `source` and `target`: straight to the servers. Errors of both are waited out: servers may be away. */
export function startTicks(source: string, target: string): Ticks {
  const written: number[] = []
  let arrived = -1
  let worst = 0
  let stopped = false
  const age = (): number => {
    const oldest = written[arrived + 1]
    return oldest === undefined ? 0 : (performance.now() - oldest) / 1000
  }
  const forever = async (work: () => Promise<void>): Promise<void> => {
    while (!stopped) await work().catch(() => sleep(100))
  }
  const writing = forever(async () => {
    await using client = await connected(source)
    client.on('error', () => {})
    while (!stopped) {
      await client.query('insert into tick values ($1) on conflict do nothing', [written.length])
      written.push(performance.now())
      await sleep(100)
    }
  })
  const reading = forever(async () => {
    await using client = await connected(target)
    client.on('error', () => {})
    while (!stopped) {
      const { rows } = await client.query<{ n: number | null }>('select max(n) as n from tick')
      worst = Math.max(worst, age())
      arrived = rows[0]?.n ?? -1
      await sleep(50)
    }
  })
  const stop = async (): Promise<void> => {
    stopped = true
    await Promise.all([writing, reading])
  }
  return {
    worst() {
      const found = Math.max(worst, age())
      worst = 0
      return found
    },
    async through(seconds) {
      const wanted = written.length
      const deadline = performance.now() + seconds * 1000
      while (arrived < wanted) {
        if (performance.now() > deadline) throw new Error(`nothing came through for ${age().toFixed(1)} s`)
        await sleep(20)
      }
    },
    stop,
    [Symbol.asyncDispose]: stop,
  }
}
