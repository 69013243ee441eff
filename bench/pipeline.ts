// `npm run bench`: everything docs/performance.md tells, in one run. `--quick`: a tenth of the size. `--only copy,drain`: some parts, printed and not
// recorded, or with `--record` in the place of those of the newest run.
import { execFileSync } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { kafkaRelease } from '../test/support/kafka.ts'
import { sql } from '../test/support/postgres.ts'
import { copies } from './copy.ts'
import { drains } from './drain.ts'
import { latency } from './latency.ts'
import { load, machineLine } from './machine.ts'
import { bigTransaction } from './memory.ts'
import { table, writeTable, type Results } from './report.ts'
import { startServers } from './servers.ts'
import { stages } from './stages.ts'
import { verifications } from './verify.ts'

const { values } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    only: { type: 'string' },
    record: { type: 'boolean', default: false },
  },
})
const scale = values.quick ? 0.1 : 1
const chosen = values.only?.split(',')

async function part<T>(name: string, run: () => Promise<T>): Promise<T | undefined> {
  if (chosen !== undefined && !chosen.includes(name)) return undefined
  const began = performance.now()
  process.stderr.write(`${name} ...`)
  const result = await run()
  process.stderr.write(` ${((performance.now() - began) / 1000).toFixed(0)} s\n`)
  return result
}

await using servers = await startServers()
const before = load()
const [version] = await sql<{ server_version: string }>(servers.source.adminUrl, 'show server_version')
const drained = { inserts: 500_000 * scale, updates: 300_000 * scale, deletes: 100_000 * scale }
// Never less: code must be warm.
const staged = { inserts: 100_000, updates: 60_000, deletes: 20_000 }
const found = {
  stages: await part('stages', () => stages(servers, staged, 'stages')),
  copy: await part('copy', () => copies(servers, { rows: 1_000_000 * scale, rounds: 3 }, 'copy')),
  verify: await part('verify', () => verifications(servers, { rows: 1_000_000 * scale, rounds: 3 }, 'verify')),
  // Under 100,000 rows a table would get one partition.
  drain: await part('drain', () => drains(servers, drained, 150_000, 'drain')),
  latency: await part('latency', () => latency(servers, { perSecond: 500, seconds: values.quick ? 5 : 20 }, 'latency')),
  transaction: await part('transaction', () => bigTransaction(servers, 1_000_000 * scale, 'transaction')),
}
const results: Results = {
  v: 1,
  at: new Date().toISOString(),
  machine: machineLine(),
  postgres: version?.server_version ?? 'unknown',
  kafka: kafkaRelease,
  commit: commit(),
  size: values.quick ? 'quick' : 'full',
  load: [before, load()],
  ...(found.stages && { stages: found.stages }),
  ...(found.copy && { copy: found.copy }),
  ...(found.verify && { verify: found.verify }),
  ...(found.drain && { drain: found.drain }),
  ...(found.latency && { latency: found.latency }),
  ...(found.transaction && { transaction: found.transaction }),
}
process.stdout.write(`${table(results)}\n`)
const folder = new URL('results/', import.meta.url)
const size = values.quick ? '-quick' : ''
if (chosen === undefined) {
  mkdirSync(folder, { recursive: true })
  record(new URL(`${results.at.slice(0, 10)}${size}.json`, folder), results)
} else if (values.record) {
  const [newest] = readdirSync(folder)
    .filter((name) => name.endsWith('.json') && name.endsWith('-quick.json') === values.quick)
    .toSorted()
    .toReversed()
  if (newest === undefined) throw new Error('nothing is recorded yet')
  const path = new URL(newest, folder)
  const former = JSON.parse(readFileSync(path, 'utf8')) as Results
  const { at, commit, load } = results
  const later = {
    ...former.later,
    ...Object.fromEntries(
      Object.keys(found)
        .filter((part) => chosen.includes(part))
        .map((part) => [part, { at, commit, load }]),
    ),
  }
  record(path, {
    ...former,
    ...Object.fromEntries(Object.entries(found).filter(([, part]) => part !== undefined)),
    later,
  })
}

function record(path: URL, all: Results): void {
  writeFileSync(path, `${JSON.stringify(all, undefined, 2)}\n`)
  if (!values.quick) writeTable(new URL('../docs/performance.md', import.meta.url), all)
}

function commit(): string {
  try {
    return execFileSync('git', ['rev-parse', '--short', 'HEAD'], { encoding: 'utf8', cwd: import.meta.dirname }).trim()
  } catch {
    return 'unknown'
  }
}
