import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { kafka, postgres } from './servers.ts'
import { compareShops, createShop, loadShop, startWriters } from './shop.ts'
import { until, workplace, type Worker } from './worker.ts'

type Killing = {
  readonly seed: number
  readonly rows: number
  /** Deaths in all; about a third of them while tables are copied. */
  readonly kills: number
  readonly log: 'kafka' | 'embedded'
  readonly say: (text: string) => void
}

/** A shop that is written to all the time, and a worker that dies by SIGKILL again and again, in the copy and in the stream. At the end the writers
 *  stop, and both ends are compared by SQL: contents, the sum of money, and the ledger against what the clients were told. */
export async function surviveKills({ seed, rows, kills, log, say }: Killing): Promise<void> {
  const pg = await postgres(18)
  const [source, target] = [await pg.database('kills_source'), await pg.database('kills_target')]
  await createShop(source)
  await loadShop(source, rows)
  const yaml = `name: ${uniqueName('kills')}
source: { type: postgres, url: "${source}" }
target: { type: postgres, url: "${target}" }
tables: { include: ["public.*"] }
log: ${await logConfig(log)}
snapshot: { parallel: 3, chunkRows: ${Math.max(1000, Math.round(rows / 40))} }
apply: { lanes: 3, batchRows: 500 }
`
  await using work = await workplace(yaml)
  const writers = startWriters(source, { seed, writers: 3, pause: 4 })
  const random = seeded(seed)
  let worker: Worker | undefined
  for (let death = 1; death <= kills; death++) {
    worker = work.run()
    // A worker needs a moment to start, and up to its predecessor's lease to take over; a copy is hit early, the stream whenever.
    const life = death <= kills / 3 ? 500 + random() * 9000 : 1000 + random() * 10_000
    const early = await Promise.race([worker.ended, sleep(life)])
    assert.equal(early, undefined, `the worker ended by itself before death ${death}:\n${worker.output()}`)
    await worker.kill9()
    say(`death ${death} after ${Math.round(life)} ms (${writers.acknowledged()} commits so far)`)
  }
  worker = work.run()
  await sleep(8000)
  const written = await writers.stop()
  say(`${writers.acknowledged()} commits, ${written.sure.size} transfers acknowledged, ${written.unknown.size} unknown`)
  await until(async () => await compareShops(source, target, written).catch((error: unknown) => [String(error)]), {
    seconds: 90,
    worker,
  })
  const end = await worker.stop()
  assert.equal(end.code, 0, end.stderr)
}

/** A pipeline's name that no other test has. */
export function uniqueName(start: string): string {
  const moment = Math.floor(performance.timeOrigin + performance.now()) % 36 ** 5
  return `${start}_${process.pid.toString(36)}${moment.toString(36)}${(names++).toString(36)}`.slice(0, 31)
}
let names = 0

/** The `log:` of a configuration file. */
export async function logConfig(log: 'kafka' | 'embedded', partitions = 4): Promise<string> {
  if (log === 'embedded') return `{ type: embedded, partitions: ${partitions} }`
  const { brokers } = await kafka()
  return `{ type: kafka, brokers: [${brokers.map((broker) => `"${broker}"`).join(', ')}], partitions: ${partitions}, replication: 1 }`
}

function seeded(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 4294967296
  }
}
