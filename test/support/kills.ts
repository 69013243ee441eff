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
  /** How many, each of its own databases, side by side; the deaths are shared among them. */
  readonly pipelines?: number
  readonly log: 'kafka' | 'embedded'
  readonly say: (text: string) => void
}

/** Shops that are written to all the time, and workers that die by SIGKILL again and again, in the copy and in the stream. At the end the writers
 *  stop, and both ends are compared by SQL: contents, the sum of money, and the ledger against what the clients were told. */
export async function surviveKills({ pipelines = 1, kills, seed, say, ...rest }: Killing): Promise<void> {
  const each = Array.from({ length: pipelines }, async (_, i) => {
    const words = pipelines === 1 ? say : (text: string): void => say(`pipeline ${i + 1}: ${text}`)
    await survive({ ...rest, kills: Math.ceil(kills / pipelines), seed: seed + i, say: words })
  })
  // Each to its end: what one leaves running would hurt the other.
  const failed = (await Promise.allSettled(each)).find(({ status }) => status === 'rejected')
  if (failed?.status === 'rejected') throw failed.reason
}

async function survive({ seed, rows, kills, log, say }: Omit<Killing, 'pipelines'>): Promise<void> {
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
  const phases = { starting: 0, copying: 0, streaming: 0 }
  let worker: Worker | undefined
  for (let death = 1; death <= kills; death++) {
    worker = work.run()
    const current = worker
    const began = performance.now()
    // A third whenever, so that a copy is hit, and the start; the others once changes stream.
    if (death > kills / 3 && random() < 0.8)
      await until(async () => (phaseOf(current) === 'streaming' ? [] : ['not streaming']), { seconds: 120, worker })
    const early = await Promise.race([worker.ended, sleep(100 + random() * (death > kills / 3 ? 1500 : 4000))])
    assert.equal(early, undefined, `the worker ended by itself before death ${death}:\n${worker.output()}`)
    await worker.kill9()
    const phase = phaseOf(worker)
    phases[phase]++
    say(
      `death ${death}, ${phase}, after ${Math.round(performance.now() - began)} ms (${writers.acknowledged()} commits)`,
    )
  }
  worker = work.run()
  await sleep(3000)
  const written = await writers.stop()
  say(`deaths: ${phases.starting} starting, ${phases.copying} copying, ${phases.streaming} streaming`)
  say(`${writers.acknowledged()} commits, ${written.sure.size} transfers acknowledged, ${written.unknown.size} unknown`)
  await until(async () => await compareShops(source, target, written).catch((error: unknown) => [String(error)]), {
    seconds: 180,
    worker,
  })
  const end = await worker.stop()
  assert.equal(end.code, 0, end.stderr)
}

function phaseOf(worker: Worker): 'starting' | 'copying' | 'streaming' {
  const shown = worker.printed()
  return shown.includes(' streaming ') ? 'streaming' : shown.includes(' copying ') ? 'copying' : 'starting'
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
