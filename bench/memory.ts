import { sql } from '../test/support/postgres.ts'
import { until, workplace } from '../test/support/worker.ts'
import { config } from './drain.ts'
import { insertItems, itemTable } from './item.ts'
import { peakMemory } from './machine.ts'
import type { Servers } from './servers.ts'

export type BigTransaction = { readonly rows: number; readonly seconds: number; readonly workerPeakBytes: number }

/** One transaction of `rows` inserts through a running worker: from its commit to the last row at the target. */
export async function bigTransaction(
  { source, target, kafka }: Servers,
  rows: number,
  name: string,
): Promise<BigTransaction> {
  const from = await source.createDatabase(name)
  const to = await target.createDatabase(`${name}_ours`)
  await sql(from, itemTable)
  await using work = await workplace(config(name, from, to, kafka.brokers))
  const worker = work.run()
  const count = async (): Promise<number> =>
    (await sql<{ n: number }>(to, 'select count(*)::int as n from item').catch(() => []))[0]?.n ?? -1
  await until(async () => ((await count()) === 0 ? [] : ['no table yet']), { seconds: 60, worker })
  await insertItems(from, rows)
  const began = performance.now()
  await until(async () => ((await count()) === rows ? [] : ['not applied']), { seconds: 240, worker })
  const seconds = (performance.now() - began) / 1000
  const workerPeakBytes = peakMemory(worker.pid)
  const { code, stderr } = await worker.stop()
  if (code !== 0) throw new Error(`the worker ended with ${code}:\n${stderr}`)
  return { rows, seconds, workerPeakBytes }
}
