import { setTimeout as sleep } from 'node:timers/promises'
import { kafkaMissing, startKafka, type KafkaCluster } from '../support/kafka.ts'
import { sql, startPostgres } from '../support/postgres.ts'
import { compareShops, connected, createShop, loadShop, shopTables, startWriters } from '../support/shop.ts'
import { workplace, type Worker } from '../support/worker.ts'
import { story } from './story.ts'

const rowsWanted = 300_000
/** The part of a run's `--json` lines that the demo looks at. */
type Line = {
  readonly phase: string
  readonly lag: { readonly seconds: number | null }
  readonly tables: readonly { readonly chunksDone: number; readonly chunks: number }[]
}

const tell = story(process.stdout)
tell.title('A shop moves to another server while people buy')

const missing = kafkaMissing()
const [source, target, kafka] = await Promise.all([
  startPostgres({ settings: { shared_buffers: '128MB' } }),
  startPostgres({ settings: { shared_buffers: '128MB' } }),
  missing === undefined ? startKafka() : undefined,
])
tell.done(
  `two PostgreSQL ${source.version} servers${kafka ? ' and Apache Kafka' : ''} are up`,
  kafka === undefined ? `no Kafka here (${missing}), so changes go through the embedded log` : undefined,
)
const [sourceUrl, targetUrl] = [await source.createDatabase('shop'), await target.createDatabase('shop')]
await createShop(sourceUrl)
const rows = await loadShop(sourceUrl, rowsWanted)
tell.done(`the shop has ${tell.number(rows)} rows in ${shopTables.length} tables; the other server is empty`)

await using work = await workplace(configuration(sourceUrl, targetUrl, kafka))
const writers = startWriters(sourceUrl, { writers: 3, seed: 42, pause: 3 })
tell.done('three clients buy, pay, move money, change their minds; from now until the end')

tell.chapter('copy')
let worker = work.run({ args: ['--json'] })
await watch(worker, ({ tables }) => share(tables) > 0.35, 'copying')
await worker.kill9()
tell.blow(`SIGKILL in the middle of the copy, at ${tell.percent(share(last(worker)?.tables ?? []))}`)
worker = work.run({ args: ['--json'] })
tell.done('a new worker takes over at once: it knows that the dead one has ended')
await watch(worker, ({ phase }) => phase === 'streaming', 'copying')
tell.done('every table is copied: each finished chunk once, the rest under a new exact snapshot')

tell.chapter('stream')
await watch(worker, ({ lag }) => lag.seconds !== null && lag.seconds < 3, 'catching up')
await during(2500, worker, 'in step')
const before = writers.acknowledged()
await worker.kill9()
tell.blow('SIGKILL in the middle of the stream')
await sleep(1500)
worker = work.run({ args: ['--json'] })
await watch(worker, ({ lag }) => lag.seconds !== null && lag.seconds < 3, 'catching up')
tell.done(`a new worker carried on; ${tell.number(writers.acknowledged() - before)} transactions had come meanwhile`)
await during(1500, worker, 'in step')

tell.chapter('verify')
const harm = [
  `update customer set balance = balance + 1 where id = (select id from customer order by id offset 7000 limit 1) returning id`,
  `delete from order_line where (order_id, line) = (select order_id, line from order_line order by order_id desc, line limit 1) returning line`,
]
for (const statement of harm)
  if ((await sql(targetUrl, statement)).length !== 1) throw new Error(`no row for: ${statement}`)
tell.blow('by hand, at the target: a customer gets 1.00 more, a line of an order is deleted')
const verdicts = [
  await crossfade('verify'),
  await crossfade('repair', '--dry-run'),
  await crossfade('repair'),
  await crossfade('verify'),
]
const verified = verdicts.join() === '1,1,0,0'
if (verified) tell.done(`found and mended; the clients went on: ${tell.number(writers.acknowledged())} transactions`)
else tell.wrong(`the commands ended with ${verdicts.join(', ')}`)

tell.chapter('compare')
const written = await writers.stop()
const stopped = performance.now()
let differences = await compareShops(sourceUrl, targetUrl, written)
while (differences.length > 0 && performance.now() - stopped < 30_000) {
  await sleep(50)
  differences = await compareShops(sourceUrl, targetUrl, written)
}
const settled = performance.now() - stopped
const end = await worker.stop()
const equal = differences.length === 0
const wrote = `the writers stopped after ${tell.number(writers.acknowledged())} transactions`
if (equal) tell.done(`${wrote}; both ends were compared until equal, ${Math.round(settled)} ms`)
else tell.wrong(`${wrote}; both ends still differ after ${Math.round(settled / 1000)} s`)
await compared()
if (end.code !== 0) tell.wrong(`the worker ended with ${end.code}:\n${end.stderr}`)
const good = equal && verified && end.code === 0
tell.end(
  good
    ? 'Nothing lost, nothing doubled: both ends are equal in every table.'
    : `The ends differ:\n${differences.join('\n')}`,
  good,
)
await Promise.all([source.stop(), target.stop(), kafka?.stop()])
process.exitCode = good ? 0 : 1

/** As it is typed in a checkout; shows all it prints, and resolves to its exit code. */
async function crossfade(...args: readonly string[]): Promise<number | null> {
  tell.command(`crossfade ${args.join(' ')}`)
  const { code, stdout, stderr } = await work.command(args, { npm_lifecycle_event: 'crossfade' })
  tell.output(code === 0 || code === 1 ? stdout : stdout + stderr)
  return code
}

function configuration(from: string, to: string, log: KafkaCluster | undefined): string {
  const through = log
    ? `{ type: kafka, brokers: ["${log.brokers.join('", "')}"], partitions: 4, replication: 1 }`
    : '{ type: embedded, partitions: 4 }'
  return `name: shop
source: { type: postgres, url: "${from}" }
target: { type: postgres, url: "${to}" }
tables: { include: ["public.*"] }
log: ${through}
snapshot: { parallel: 2, chunkRows: 20000 }
`
}

function last(worker: Worker): Line | undefined {
  const line = worker.printed().trimEnd().split('\n').at(-1)
  if (!line?.startsWith('{')) return undefined
  const parsed = JSON.parse(line) as Partial<Line>
  return parsed.tables === undefined ? undefined : (parsed as Line)
}

function share(tables: Line['tables']): number {
  const all = tables.reduce((sum, { chunks }) => sum + chunks, 0)
  return all === 0 ? 0 : tables.reduce((sum, { chunksDone }) => sum + chunksDone, 0) / all
}

/** Draws what the worker says of itself until `enough`; a worker that ends by itself ends the demo. */
async function watch(worker: Worker, enough: (line: Line) => boolean, doing: string): Promise<void> {
  let ended = false
  void worker.ended.then(() => (ended = true))
  const deadline = performance.now() + 90_000
  for (;;) {
    const line = last(worker)
    if (line !== undefined) {
      if (enough(line)) return tell.still()
      const lag = line.lag.seconds
      tell.moving(
        doing,
        share(line.tables),
        `${tell.number(writers.acknowledged())} transactions so far${lag === null ? '' : `, lag ${lag.toFixed(1)} s`}`,
      )
    }
    if (ended || performance.now() > deadline) {
      tell.wrong(`the worker ${ended ? 'ended by itself' : 'took too long'}:\n${worker.output().slice(-3000)}`)
      process.exit(1)
    }
    await sleep(100)
  }
}

async function during(ms: number, worker: Worker, doing: string): Promise<void> {
  const end = performance.now() + ms
  await watch(worker, () => performance.now() > end, doing)
}

/** One line a table, counted by SQL at both ends. */
async function compared(): Promise<void> {
  await using from = await connected(sourceUrl)
  await using to = await connected(targetUrl)
  for (const table of shopTables) {
    const ask = `select count(*)::int as rows, coalesce(md5(string_agg(x::text, ',' order by x::text collate "C")), '-') as md5 from ${table} x`
    const [one, other] = await Promise.all([
      from.query<{ rows: number; md5: string }>(ask),
      to.query<{ rows: number; md5: string }>(ask),
    ])
    const [a, b] = [one.rows[0], other.rows[0]]
    tell.pair(table, a?.rows ?? 0, b?.rows ?? 0, a?.md5 ?? '', a?.md5 === b?.md5)
  }
  const sum = 'select sum(balance)::text as sum from account'
  const [here, there] = [await from.query<{ sum: string }>(sum), await to.query<{ sum: string }>(sum)]
  tell.done(`money in all accounts: ${here.rows[0]?.sum} at the source, ${there.rows[0]?.sum} at the target`)
  const safe = `transfers the clients were told are safe: ${tell.number(written.sure.size)}`
  if (equal) tell.done(`${safe}; in the target's ledger: all of them`)
}
