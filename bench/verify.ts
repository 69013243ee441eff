import { setTimeout as sleep } from 'node:timers/promises'
import { openReader } from '../connectors/postgres/reader.ts'
import { parse } from '../connectors/postgres/config.ts'
import { readCatalog, tableSchema } from '../connectors/postgres/schema.ts'
import { sql } from '../test/support/postgres.ts'
import { connected } from '../test/support/shop.ts'
import { workplace, type Workplace } from '../test/support/worker.ts'
import { copyByWorker, copyConfig } from './copy.ts'
import { itemTable, loadItems } from './item.ts'
import { cpuOf, median } from './machine.ts'
import type { Servers } from './servers.ts'

/** Of ratios, each of two measurements in one round. */
export type Spread = { readonly median: number; readonly least: number; readonly most: number }
/** Medians of the rounds; times in seconds, CPU in µs a row. */
export type Verifications = {
  readonly rows: number
  readonly rounds: number
  readonly seconds: number
  readonly ratio: Spread
  /** The whole command beside the whole run of a `full` pipeline. */
  readonly ratioWhole: Spread
  readonly cpu: { readonly source: number; readonly target: number }
  readonly digest: {
    readonly ours: number
    readonly count: number
    readonly text: number
    readonly ofCount: Spread
    readonly ofText: Spread
  }
  /** What an own session at the source saw of a verification that was held back. `busy`: share of its looks in which a reader was at work. */
  readonly rate: Held & {
    readonly asked: number
    readonly seen: number
    readonly sessions: number
    readonly busy: number
  }
  /** `idle`: share of the looks in which no reader was at work, from the last one that was on. */
  readonly load: Held & {
    readonly asked: number
    readonly others: number
    readonly stoppedAfter: number
    readonly resumedAfter: number
    readonly idle: number
  }
}
type Held = { readonly samples: number }

export async function verifications(
  servers: Servers,
  { rows, rounds }: { readonly rows: number; readonly rounds: number },
  name: string,
): Promise<Verifications> {
  const { source, target, kafka } = servers
  const from = await source.createDatabase(name)
  await loadItems(from, rows)
  const found: (Verified & { readonly copy: number; readonly copyWhole: number })[] = []
  let held: Pick<Verifications, 'rate' | 'load'> | undefined
  for (let round = 0; round < rounds; round++) {
    const pipeline = `${name}_${round}`
    const to = await target.createDatabase(pipeline)
    await sql(to, itemTable)
    await using work = await workplace(copyConfig(pipeline, from, to, kafka.brokers))
    const { seconds: copy, whole: copyWhole } = await copyByWorker(work, pipeline, to, rows)
    await sql(target.adminUrl, 'checkpoint')
    found.push({ copy, copyWhole, ...(await verified(servers, work, rows)) })
    if (round === rounds - 1) held = { rate: await atRate(work, from, rows), load: await underLoad(work, from, rows) }
    await sql(target.adminUrl, `drop database ${pipeline} with (force)`)
  }
  if (held === undefined) throw new Error('no rounds')
  return {
    rows,
    rounds,
    seconds: median(found.map(({ seconds }) => seconds)),
    ratio: spread(found.map(({ seconds, copy }) => seconds / copy)),
    ratioWhole: spread(found.map(({ whole, copyWhole }) => whole / copyWhole)),
    cpu: {
      source: median(found.map(({ source }) => source)),
      target: median(found.map(({ target }) => target)),
    },
    digest: await digests(servers, name, Math.min(rows, 200_000)),
    ...held,
  }
}

function spread(ratios: readonly number[]): Spread {
  return { median: median(ratios), least: Math.min(...ratios), most: Math.max(...ratios) }
}

type Verified = {
  readonly seconds: number
  readonly whole: number
  readonly source: number
  readonly target: number
}
type Report = {
  readonly verdict: string
  readonly began: number
  readonly ended: number
  readonly tables: readonly { readonly pieces: { readonly equal: number } }[]
}

/** `verify` to its end, which has to be equal. */
async function verify(work: Workplace, args: readonly string[] = []): Promise<Report> {
  const { code, stdout, stderr } = await work.command(['verify', '--fresh', '--json', ...args])
  if (code !== 0) throw new Error(`the verification ended with ${code}:\n${stdout}${stderr}`)
  return JSON.parse(stdout) as Report
}

async function verified({ source, target }: Servers, work: Workplace, rows: number): Promise<Verified> {
  const cpu = (): readonly number[] => [source.pid, target.pid].map(cpuOf)
  const before = cpu()
  const began = performance.now()
  const report = await verify(work)
  const whole = (performance.now() - began) / 1000
  const [onSource = 0, onTarget = 0] = cpu().map((each, i) => (each - (before[i] ?? 0)) / rows)
  return { seconds: (report.ended - report.began) / 1000, whole, source: onSource, target: onTarget }
}

const digestRounds = 5
/** CPU of the source's server for the digest of a table, and for what else one would ask it, in turn. */
async function digests({ source }: Servers, name: string, rows: number): Promise<Verifications['digest']> {
  const url = await source.createDatabase(`${name}_digest`)
  await loadItems(url, rows)
  const config = parse({ url })
  const signal = new AbortController().signal
  await using client = await connected(url)
  const [table] = await readCatalog(client, ({ name }) => name === 'item')
  if (table === undefined) throw new Error('no table')
  await using reader = await openReader(config, 'now', name, signal)
  const schema = tableSchema(table, 1)
  const measured = async (work: () => Promise<unknown>): Promise<number> => {
    const before = cpuOf(source.pid)
    await work()
    return (cpuOf(source.pid) - before) / rows
  }
  await client.query('set max_parallel_workers_per_gather = 0')
  const all: { readonly ours: number; readonly count: number; readonly text: number }[] = []
  for (let round = 0; round < digestRounds; round++)
    all.push({
      ours: await measured(
        async () => await reader.digest?.(schema, { table: schema.table, estimatedRows: rows }, signal),
      ),
      // Once is less than what the clock of processes tells apart.
      count:
        (await measured(
          async () =>
            await client.query('do $$ begin for n in 1 .. 10 loop perform count(*) from item; end loop; end $$'),
        )) / 10,
      text: await measured(async () => await client.query('select count(md5(t::text)) from item t')),
    })
  return {
    ours: median(all.map(({ ours }) => ours)),
    count: median(all.map(({ count }) => count)),
    text: median(all.map(({ text }) => text)),
    ofCount: spread(all.map(({ ours, count }) => ours / count)),
    ofText: spread(all.map(({ ours, text }) => ours / text)),
  }
}

/** One look at the source's sessions: readers of ours at work. `at` in ms. */
type Look = { readonly at: number; readonly working: number }

/** Looks 20 times a second while `work` lasts, and reads what the server counted of the table meanwhile. Its own session is no other's. */
async function watched<T>(
  url: string,
  work: (looks: readonly Look[]) => Promise<T>,
): Promise<{ readonly result: T; readonly looks: readonly Look[]; readonly read: number }> {
  await using client = await connected(url)
  await client.query(`set application_name = 'crossfade bench'`)
  const count = async (): Promise<number> => {
    const { rows } = await client.query<{ read: number }>(
      `select (seq_tup_read + coalesce(idx_tup_fetch, 0))::float8 as read from pg_stat_user_tables where relname = 'item'`,
    )
    return rows[0]?.read ?? 0
  }
  const before = await count()
  const looks: Look[] = []
  let over = false
  const look = async (): Promise<void> => {
    while (!over) {
      const { rows } = await client.query<{ working: number }>(
        `select count(*)::int as working from pg_stat_activity
          where application_name like 'crossfade % reader' and state = 'active'`,
      )
      looks.push({ at: performance.now(), working: rows[0]?.working ?? 0 })
      await sleep(50)
    }
  }
  const looking = look()
  try {
    const result = await work(looks)
    return { result, looks, read: (await count()) - before }
  } finally {
    over = true
    await looking
  }
}

async function atRate(work: Workplace, url: string, rows: number): Promise<Verifications['rate']> {
  const asked = rows / 10
  const { result, looks, read } = await watched(url, async () => await verify(work, ['--rate', String(asked)]))
  // The first part is read at once: between the first and the last there is one part less.
  const parts = result.tables[0]?.pieces.equal ?? 0
  const busy = looks.filter(({ working }) => working > 0)
  const seconds = ((busy.at(-1)?.at ?? 0) - (busy[0]?.at ?? 0)) / 1000
  const during = looks.filter(({ at }) => at >= (busy[0]?.at ?? 0) && at <= (busy.at(-1)?.at ?? 0))
  return {
    asked,
    seen: (read * (parts - 1)) / parts / seconds,
    sessions: during.reduce((sum, { working }) => sum + working, 0) / during.length,
    busy: busy.length / during.length,
    samples: during.length,
  }
}

const others = 3
const heldMs = 4_000
async function underLoad(work: Workplace, url: string, rows: number): Promise<Verifications['load']> {
  const asked = others - 1
  const { result, looks } = await watched(url, async (looks) => {
    // Slow enough to be under way before, and after.
    const verifying = verify(work, ['--max-load', String(asked), '--rate', String(rows / 5)])
    while (!looks.some(({ working }) => working > 0)) await sleep(20)
    await sleep(1_000)
    const began = performance.now()
    await Promise.all(Array.from({ length: others }, async () => await sql(url, `select pg_sleep(${heldMs / 1000})`)))
    const ended = performance.now()
    await verifying
    return { began, ended }
  })
  const during = looks.filter(({ at }) => at > result.began && at < result.ended)
  const last = during.findLast(({ working }) => working > 0)?.at ?? result.began
  const quiet = during.filter(({ at }) => at > result.began + heldMs / 2)
  const again = looks.find(({ at, working }) => at > result.ended && working > 0)
  return {
    asked,
    others,
    stoppedAfter: (last - result.began) / 1000,
    resumedAfter: ((again?.at ?? Number.NaN) - result.ended) / 1000,
    idle: quiet.filter(({ working }) => working === 0).length / quiet.length,
    samples: quiet.length,
  }
}
