// Runs test files: `node test/run.ts [--only test|faults] [--json file] [path or part of one]...`
// Servers that the chosen files need, by suffix or by name, are started once; the last line is `N passed, N failed`.
// `--only faults`: test/faults, each file with servers of its own, and all files that docs/guarantees.md names for a hazard; at the end, and as JSON,
// what became of each hazard.
import { globSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { dirname, relative, resolve, sep } from 'node:path'
import { parseArgs } from 'node:util'
import { hazardTable, readHazards, renderHazards, type Hazard } from './support/hazards.ts'
import { runFile, type FileLimits, type FileResult } from './support/run-file.ts'
import { addressVariable, kafka, missing, missingVariable, postgres, versionOf, type Need } from './support/servers.ts'

const root = resolve(import.meta.dirname, '..')
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    only: { type: 'string' },
    json: { type: 'string', default: resolve(root, '.crossfade/faults.json') },
    name: { type: 'string', multiple: true },
    /** Seconds for a test that names no limit of its own. */
    timeout: { type: 'string' },
    concurrency: { type: 'string', default: String(Math.min(2, availableParallelism())) },
  },
})

const faults = `test${sep}faults${sep}`
const withHazards = values.only === 'faults'
const hazards: readonly Hazard[] = withHazards
  ? readHazards(readFileSync(resolve(root, 'docs/guarantees.md'), 'utf8'))
  : []
/** What random tests take their choices from. */
const seed = (process.env['CROSSFADE_SEED'] ??= String(Date.now() % 100_000))

function chooseFiles(): string[] {
  const all = globSync('test/**/*.test.ts', { cwd: root }).sort()
  const named = positionals.map((each) => {
    const path = relative(root, resolve(each))
    return all.includes(path) ? path : each
  })
  return all.filter((file) => {
    if (named.length > 0 && !named.some((part) => file.includes(part))) return false
    if (values.only === 'test') return !needsServer(file)
    if (withHazards) return file.startsWith(faults) || holdsHazard(file)
    return named.length > 0 || !file.startsWith(faults)
  })
}

/** Named for a hazard, or runs conformance tests that are. */
function holdsHazard(file: string): boolean {
  const named = new Set(hazards.flatMap(({ tests }) => tests.map((test) => test.file)))
  if (named.has(file)) return true
  const imports = readFileSync(resolve(root, file), 'utf8').match(/conformance\/[\w-]+\.ts/g) ?? []
  return imports.some((path) => named.has(`test/${path}`))
}

/** `x.test.ts` needs nothing; every other suffix, as in `x.pg.test.ts`, names what must run. */
function needsServer(file: string): boolean {
  return /\.(pg|kafka|e2e|mongo|ui)\.test\.ts$/.test(file) || file.startsWith(faults)
}

/** By suffix; the older versions and files of other suffixes by what their text asks for. */
function neededBy(file: string): Need[] {
  if (!needsServer(file)) return []
  const text = readFileSync(resolve(root, file), 'utf8')
  const found = new Set<Need>()
  if (/\.(pg|e2e)\.test\.ts$/.test(file)) found.add('pg')
  if (/\.(kafka|e2e)\.test\.ts$/.test(file)) found.add('kafka')
  for (const need of ['pg', 'pg15', 'pg14', 'kafka'] as const) if (text.includes(`'${need}'`)) found.add(need)
  for (const version of [15, 14] as const) if (text.includes(`postgres(${version})`)) found.add(`pg${version}`)
  return [...found]
}

/** Puts the addresses, or the reason why there is none, into the environment that the test files get. */
async function startServers(files: readonly string[]): Promise<void> {
  const all = new Set(files.flatMap(neededBy))
  const started = Date.now()
  await Promise.all(
    [...all].map(async (need) => {
      if (process.env[addressVariable(need)]) return
      try {
        const reason = missing(need)
        if (reason !== undefined) throw new Error(reason)
        const address =
          need === 'kafka' ? (await kafka()).brokers.join(',') : (await postgres(versionOf(need))).adminUrl
        process.env[addressVariable(need)] = address
      } catch (error) {
        const reason = error instanceof Error ? error.message : String(error)
        process.env[missingVariable(need)] = reason
        console.log(`no ${need}: ${reason}`)
      }
    }),
  )
  if (all.size > 0)
    console.log(`servers (${[...all].sort().join(', ')}) in ${((Date.now() - started) / 1000).toFixed(1)} s`)
}

async function main(): Promise<number> {
  if (values.only !== undefined && values.only !== 'test' && values.only !== 'faults') {
    console.error(`--only takes test or faults, not ${values.only}`)
    return 2
  }
  const started = Date.now()
  const files = chooseFiles()
  /** Given to files whose faults may hurt what others use. */
  const alone = { ...process.env }
  await startServers(files.filter((file) => !file.startsWith(faults)))
  const limits: Omit<FileLimits, 'testMs'> = {
    fileMs: (withHazards ? 45 : 20) * 60_000,
    idleMs: 60_000,
    slowMs: 5_000,
    names: values.name ?? [],
  }
  const queue = [...files]
  const results: FileResult[] = []
  const workers = Array.from({ length: Math.max(1, Number(values.concurrency)) }, async () => {
    for (let file = queue.shift(); file !== undefined; file = queue.shift()) {
      const isFault = file.startsWith(faults)
      const testMs = 1000 * Number(values.timeout ?? (isFault ? 900 : 300))
      const result = await runFile(resolve(root, file), { ...limits, testMs }, isFault ? alone : process.env)
      results.push(result)
      printFile(file, result)
    }
  })
  await Promise.all(workers)
  if (withHazards) tellHazards(results, Date.now() - started)
  return printTotals(results)
}

/** In the terminal and as JSON. */
function tellHazards(results: readonly FileResult[], ms: number): void {
  const files = results.map(({ file, ms, tests, told }) => ({ file: relative(root, file), ms, tests, told }))
  const table = hazardTable(
    hazards,
    files.flatMap(({ file, tests }) => tests.map((test) => ({ file, ...test }))),
  )
  console.log(`\n${renderHazards(table)}\n\nCROSSFADE_SEED=${seed}, ${seconds(ms)}`)
  mkdirSync(dirname(values.json), { recursive: true })
  writeFileSync(values.json, `${JSON.stringify({ seed, ms, hazards: table, files }, undefined, 2)}\n`)
}

function printFile(file: string, result: FileResult): void {
  const { passed, failures, skipped } = result
  const counts = [`${passed} passed`]
  if (failures.length > 0) counts.push(`${failures.length} failed`)
  if (skipped.length > 0) counts.push(`${skipped.length} skipped`)
  console.log(
    `${failures.length > 0 ? 'FAIL' : 'ok  '} ${seconds(result.ms).padStart(7)}  ${file}: ${counts.join(', ')}`,
  )
  if (withHazards) for (const line of result.told) console.log(`               ${line}`)
  for (const failure of failures) {
    console.log(`\n  ${failure.name}\n    ${relative(root, failure.place)}\n${indent(failure.text)}\n`)
  }
  if (failures.length > 0 && result.output.trim() !== '') {
    console.log(`    what the file printed (its end):\n${indent(result.output.trimEnd().slice(-4000))}\n`)
  }
}

/** The exit code: 0 only if at least one test ran and none failed. */
function printTotals(results: readonly FileResult[]): number {
  const slow = results
    .flatMap((result) => result.slow.map((test) => ({ ...test, file: relative(root, result.file) })))
    .sort((a, b) => b.ms - a.ms)
  if (slow.length > 0) console.log('\nslow:')
  for (const test of slow.slice(0, 10)) console.log(`  ${seconds(test.ms).padStart(7)}  ${test.file}: ${test.name}`)

  const skips = new Map<string, string[]>()
  for (const result of results) {
    for (const { name, reason } of result.skipped) {
      const key = reason === '' ? 'no reason given' : reason
      skips.set(key, [...(skips.get(key) ?? []), `${relative(root, result.file)}: ${name}`])
    }
  }
  for (const [reason, tests] of skips) console.log(`\nskipped: ${reason}\n  ${tests.join('\n  ')}`)

  const failures = results.flatMap((result) => result.failures)
  if (failures.length > 0) console.log('\nfailed:')
  for (const failure of failures) console.log(`  ${relative(root, failure.place)}: ${failure.name}`)

  const passed = results.reduce((sum, result) => sum + result.passed, 0)
  const skipped = results.reduce((sum, result) => sum + result.skipped.length, 0)
  if (passed === 0 && failures.length === 0) console.log('\nno test ran')
  console.log(skipped > 0 ? `\n${skipped} skipped` : '')
  console.log(`${passed} passed, ${failures.length} failed`)
  return passed > 0 && failures.length === 0 ? 0 : 1
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`
}

function indent(text: string): string {
  return text.replace(/^/gm, '      ')
}

process.exitCode = await main()
