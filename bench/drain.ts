import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { compareTables, connected } from '../test/support/shop.ts'
import { sql } from '../test/support/postgres.ts'
import { until, workplace, type Workplace } from '../test/support/worker.ts'
import { itemTable, lastDeleted, loadItems, sums, writeBacklog, type Backlog } from './item.ts'
import { cpuOf, peakMemory } from './machine.ts'
import type { Servers } from './servers.ts'

/** CPU in µs a change. */
export type Drain = {
  readonly seconds: number
  /** Until the first change is seen. */
  readonly firstSeconds: number
  readonly changesPerSecond: number
  readonly cpu: { readonly worker: number; readonly source: number; readonly target: number; readonly log: number }
}
export type Drains = {
  readonly backlog: Backlog
  readonly ours: Drain
  readonly native: Drain
  readonly ratio: number
  readonly workerPeakBytes: number
}

/** One backlog of one source, drained twice into databases of the same server, each time from a stopped consumer: by logical replication of the server
 *  itself, and by a worker. Time counts from starting the consumer to the target's content being equal. */
export async function drains(
  { source, target, kafka }: Servers,
  backlog: Backlog,
  present: number,
  name: string,
): Promise<Drains> {
  const from = await source.createDatabase(name)
  const ours = await target.createDatabase(`${name}_ours`)
  const native = await target.createDatabase(`${name}_native`)
  await loadItems(from, present)
  await sql(native, itemTable)
  await sql(from, 'create publication native for table item')
  await sql(
    native,
    `create subscription ${name} connection 'host=127.0.0.1 port=${source.port} user=postgres dbname=${name}' publication native`,
  )
  await using work = await workplace(config(name, from, ours, kafka.brokers))
  const first = work.run()
  const copied = async (url: string): Promise<readonly string[]> =>
    (await sums(url).catch(() => '')) === (await sums(from)) ? [] : ['not copied']
  await until(() => copied(ours), { seconds: 120, worker: first })
  await until(() => copied(native), { seconds: 120 })
  // The copy is settled when a first change has come through.
  await sql(from, 'update item set version = version + 1 where id = 1')
  await until(() => copied(ours), { seconds: 60, worker: first })
  await until(() => copied(native), { seconds: 60 })
  const { code, stdout, stderr } = await first.stop()
  if (code !== 0) throw new Error(`the worker ended with ${code}:\n${stdout}${stderr}`)
  await sql(native, `alter subscription ${name} disable`)
  await writeBacklog(from, present, backlog)
  await Promise.all([from, ours, native].map(async (url) => await sql(url, 'checkpoint')))
  const gone = lastDeleted(present, backlog)
  const changes = backlog.inserts + backlog.updates + backlog.deletes
  const cpu = (): readonly number[] => [source.pid, target.pid, kafka.pids[0] ?? 0].map(cpuOf)

  const drain = async (url: string, start: () => Promise<() => number>): Promise<Drain> => {
    const expected = await sums(from)
    await using client = await connected(url)
    const before = cpu()
    const began = performance.now()
    const worker = await start()
    const { first, end } = await drainedAt(client, present + 1, gone, expected)
    const after = cpu().map((each, i) => (each - (before[i] ?? 0)) / changes)
    const seconds = (end - began) / 1000
    const [onSource = 0, onTarget = 0, log = 0] = after
    return {
      seconds,
      firstSeconds: (first - began) / 1000,
      changesPerSecond: changes / seconds,
      cpu: { worker: worker() / changes, source: onSource, target: onTarget, log },
    }
  }

  const byServer = await drain(native, async () => {
    await sql(native, `alter subscription ${name} enable`)
    return () => 0
  })
  const { drained, peak } = await drainByWorker(work, async (start) => await drain(ours, start))
  const different = [...(await compareTables(from, ours, ['item'])), ...(await compareTables(from, native, ['item']))]
  if (different.length > 0) throw new Error(`contents differ after the drain:\n${different.join('\n')}`)
  await sql(native, `drop subscription ${name}`)
  return {
    backlog,
    ours: drained,
    native: byServer,
    ratio: byServer.seconds / drained.seconds,
    workerPeakBytes: peak,
  }
}

async function drainByWorker(
  work: Workplace,
  drain: (start: () => Promise<() => number>) => Promise<Drain>,
): Promise<{ readonly drained: Drain; readonly peak: number }> {
  const worker = work.run({ env: profiled() })
  const drained = await drain(async () => () => cpuOf(worker.pid))
  const peak = peakMemory(worker.pid)
  const { code, stderr } = await worker.stop()
  if (code !== 0) throw new Error(`the worker ended with ${code}:\n${stderr}`)
  return { drained, peak }
}

export function config(name: string, from: string, to: string, brokers: readonly string[], more = ''): string {
  return `name: ${name}
source: { type: postgres, url: "${from}" }
target: { type: postgres, url: "${to}" }
log: { type: kafka, brokers: [${brokers.map((broker) => `"${broker}"`).join(', ')}], partitions: 8, replication: 1 }
${more}`
}

/** When the first change was there, and when all of them: asked cheaply and often, then whole. */
async function drainedAt(
  client: pg.Client,
  inserted: number,
  gone: readonly number[],
  expected: string,
): Promise<{ readonly first: number; readonly end: number }> {
  const deadline = performance.now() + 300_000
  let first: number | undefined
  for (;;) {
    const asked = performance.now()
    const { rows } = await client.query<{ begun: boolean; left: number }>(
      `select exists(select from item where id = $1) as begun, (select count(*)::int from item where id = any($2::bigint[])) as left`,
      [inserted, gone],
    )
    if (rows[0]?.begun === true) first ??= asked
    if (rows[0]?.left === 0) {
      const all = await client.query<{ sums: string }>(
        `select count(*) || '/' || coalesce(sum(id), 0) || '/' || coalesce(sum(version), 0) as sums from item`,
      )
      if (all.rows[0]?.sums === expected) return { first: first ?? asked, end: asked }
    }
    if (asked > deadline) throw new Error(`not drained within 300 s: ${rows[0]?.left} of the last deletes are missing`)
    await sleep(25)
  }
}

/** For the search for bottlenecks: a folder that gets a CPU profile of the worker. */
export function profiled(): NodeJS.ProcessEnv {
  const dir = process.env['CROSSFADE_BENCH_PROFILE']
  return dir === undefined ? {} : { NODE_OPTIONS: `--cpu-prof --cpu-prof-dir=${dir}` }
}
