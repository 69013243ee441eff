import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from '../test/support/postgres.ts'
import { compareTables, connected } from '../test/support/shop.ts'
import { workplace, type Workplace } from '../test/support/worker.ts'
import { config, profiled } from './drain.ts'
import { itemTable, loadItems } from './item.ts'
import { cpuOf, median, peakMemory } from './machine.ts'
import type { Servers } from './servers.ts'

/** Seconds, medians of the rounds. */
export type Copies = {
  readonly rows: number
  readonly rounds: number
  /** What the copy is compared with: psql's pipe in its binary and its text form, or without psql one chunk through our own pipe. */
  readonly pipe: 'psql' | 'own'
  readonly binary: number
  readonly text: number
  /** From the first chunk's beginning to the last one's commit; and the whole run of a `full` pipeline, from starting its process to its end. */
  readonly ours: number
  readonly oursWhole: number
  readonly ratio: number
  readonly ratioToText: number
  /** Of the worker in µs a row, starting included. */
  readonly workerCpu: number
  readonly workerPeakBytes: number
}

/** A table of `rows` rows into an empty one with its key in place, in turn by psql to psql and by a worker. */
export async function copies(
  { source, target, kafka }: Servers,
  { rows, rounds }: { readonly rows: number; readonly rounds: number },
  name: string,
): Promise<Copies> {
  const from = await source.createDatabase(name)
  await loadItems(from, rows)
  const pipe = spawnSync('psql', ['--version']).status === 0 ? 'psql' : 'own'
  const binary: number[] = []
  const text: number[] = []
  const ours: Ours[] = []
  for (let round = 0; round < rounds; round++) {
    const empty = async (kind: string): Promise<string> => {
      const url = await target.createDatabase(`${name}_${kind}_${round}`)
      await sql(url, itemTable)
      return url
    }
    const dropped = async (url: string): Promise<void> => {
      await sql(target.adminUrl, `drop database ${new URL(url).pathname.slice(1)} with (force)`)
      await sql(target.adminUrl, 'checkpoint')
    }
    for (const [form, times] of [
      ['binary', binary],
      ['text', text],
    ] as const) {
      if (pipe === 'own') continue
      const to = await empty(form)
      times.push(await psqlPipe(from, to, form))
      await dropped(to)
    }
    const to = await empty('ours')
    const parallel = pipe === 'own' && round === 0 ? 1 : 4
    await using work = await workplace(copyConfig(`${name}_${round}`, from, to, kafka.brokers, parallel))
    ours.push(await copyByWorker(work, `${name}_${round}`, to, rows))
    const different = round === 0 ? await compareTables(from, to, ['item']) : []
    if (different.length > 0) throw new Error(`contents differ after the copy:\n${different.join('\n')}`)
    await dropped(to)
  }
  const copied = median(ours.map(({ seconds }) => seconds))
  const own = ours[0]?.seconds ?? Number.NaN
  return {
    rows,
    rounds,
    pipe,
    binary: pipe === 'own' ? own : median(binary),
    text: pipe === 'own' ? own : median(text),
    ours: copied,
    oursWhole: median(ours.map(({ whole }) => whole)),
    ratio: (pipe === 'own' ? own : median(binary)) / copied,
    ratioToText: (pipe === 'own' ? own : median(text)) / copied,
    workerCpu: median(ours.map(({ cpu }) => cpu)) / rows,
    workerPeakBytes: Math.max(...ours.map(({ peak }) => peak)),
  }
}

async function psqlPipe(from: string, to: string, form: 'binary' | 'text'): Promise<number> {
  const began = performance.now()
  const read = spawn('psql', ['-Xqd', from, '-c', `copy item to stdout (format ${form})`], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const write = spawn('psql', ['-Xqd', to, '-c', `copy item from stdin (format ${form})`], {
    stdio: [read.stdout, 'ignore', 'inherit'],
  })
  // The writer has the pipe now; we are to hold no end of it.
  read.stdout.destroy()
  const codes = await Promise.all([once(read, 'exit'), once(write, 'exit')])
  if (codes.some(([code]) => code !== 0)) throw new Error(`psql ended with ${codes.join(' and ')}`)
  return (performance.now() - began) / 1000
}

type Ours = { readonly seconds: number; readonly whole: number; readonly cpu: number; readonly peak: number }

/** Of a pipeline that copies, and ends. */
export function copyConfig(name: string, from: string, to: string, brokers: readonly string[], parallel = 4): string {
  return config(name, from, to, brokers, `mode: full\nsnapshot: { parallel: ${parallel} }\n`)
}

/** One copy of `rows` rows by a pipeline of that name, to its end. */
export async function copyByWorker(work: Workplace, name: string, to: string, rows: number): Promise<Ours> {
  await using client = await connected(to)
  const began = performance.now()
  const worker = work.run({ env: profiled() })
  let cpu = 0
  let peak = 0
  let first: number | undefined
  let last: number | undefined
  let ended = false
  void worker.ended.then(() => (ended = true))
  while (!ended) {
    cpu = Math.max(cpu, cpuOf(worker.pid))
    peak = Math.max(peak, peakOf(worker.pid))
    if (last === undefined) {
      const loaded = await client
        .query<{ loaded: number; chunks: number }>(
          'select coalesce(sum(loaded), 0)::float8 as loaded, count(*)::int as chunks from crossfade.chunk where pipeline = $1',
          [name],
        )
        .then(
          (result) => result.rows[0],
          () => undefined,
        )
      if ((loaded?.chunks ?? 0) > 0) first ??= performance.now()
      if (loaded?.loaded === rows) last = performance.now()
    }
    await sleep(10)
  }
  const whole = (performance.now() - began) / 1000
  const { code, stderr } = await worker.ended
  if (code !== 0 || first === undefined || last === undefined)
    throw new Error(`the worker ended with ${code}:\n${stderr}`)
  return { seconds: (last - first) / 1000, whole, cpu, peak }
}

function peakOf(pid: number): number {
  try {
    // A process that has just ended has none.
    return peakMemory(pid) || 0
  } catch {
    return 0
  }
}
