import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from '../test/support/postgres.ts'
import { connected } from '../test/support/shop.ts'
import { until, workplace } from '../test/support/worker.ts'
import { config } from './drain.ts'
import { cpuOf, quantile } from './machine.ts'
import type { Servers } from './servers.ts'

/** Milliseconds from the commit's answer at the source's client to the answer at the target's reader that shows the row. */
export type Latency = {
  readonly perSecond: number
  readonly transactions: number
  readonly p50: number
  readonly p95: number
  readonly p99: number
  readonly most: number
  /** Of the worker, in µs a transaction. */
  readonly cpu: number
}

const writers = 4

/** Single-row transactions at a steady rate; a reader of its own asks the target again and again. Both ends share this process's clock. */
export async function latency(
  { source, target, kafka }: Servers,
  { perSecond, seconds }: { readonly perSecond: number; readonly seconds: number },
  name: string,
): Promise<Latency> {
  const from = await source.createDatabase(name)
  const to = await target.createDatabase(`${name}_ours`)
  await sql(from, 'create table beat (id bigint primary key, note text)')
  await using work = await workplace(config(name, from, to, kafka.brokers))
  const worker = work.run()
  await sql(from, `insert into beat values (0, 'first')`)
  const there = async (): Promise<readonly string[]> =>
    (await sql(to, 'select from beat').catch(() => [])).length > 0 ? [] : ['nothing there']
  await until(there, { seconds: 60, worker })

  const total = perSecond * seconds
  const warmUp = perSecond * 2
  const committed = new Float64Array(total + warmUp + 1)
  const seen = new Float64Array(total + warmUp + 1)
  const last = total + warmUp
  let next = 1
  const began = performance.now()
  const write = async (): Promise<void> => {
    await using client = await connected(from)
    for (let id = next++; id <= last; id = next++) {
      const early = began + (id / perSecond) * 1000 - performance.now()
      if (early > 1) await sleep(early)
      await client.query({ name: 'beat', text: `insert into beat values ($1, 'beat')`, values: [id] })
      committed[id] = performance.now()
    }
  }
  const read = async (): Promise<void> => {
    await using client = await connected(to)
    const deadline = began + (seconds + 30) * 1000
    for (let low = 1; low <= last; await sleep(1)) {
      const { rows } = await client.query<{ id: number }>({
        name: 'seen',
        text: 'select id::float8 as id from beat where id >= $1 order by id',
        values: [low],
      })
      const now = performance.now()
      for (const { id } of rows) if (seen[id] === 0) seen[id] = now
      while (low <= last && (seen[low] ?? 0) > 0) low++
      if (now > deadline) throw new Error(`row ${low} of ${last} did not come`)
    }
  }
  const before = cpuOf(worker.pid)
  await Promise.all([read(), ...Array.from({ length: writers }, write)])
  const cpu = (cpuOf(worker.pid) - before) / last
  const { code, stderr } = await worker.stop()
  if (code !== 0) throw new Error(`the worker ended with ${code}:\n${stderr}`)
  const delays = Array.from({ length: total }, (_, i) => {
    const id = warmUp + 1 + i
    // A row can be seen before its writer hears of its own commit.
    return Math.max(0, (seen[id] ?? 0) - (committed[id] ?? 0))
  })
  return {
    perSecond,
    transactions: total,
    p50: quantile(delays, 0.5),
    p95: quantile(delays, 0.95),
    p99: quantile(delays, 0.99),
    most: quantile(delays, 1),
    cpu,
  }
}
