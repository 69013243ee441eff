import { existsSync } from 'node:fs'
import { InvalidArgumentError, type Command } from 'commander'
import { defaultFile } from '../config/load-config.ts'
import type { PipelineConfig } from '../config/pipeline-config.ts'
import { tableFilter } from '../config/table-pattern.ts'
import { Failure } from '../errors.ts'
import type { Logger } from '../logger.ts'
import type { Connectors } from '../parts.ts'
import { readJournal, type DifferenceLine } from '../verify/journal.ts'
import { emptyReport, summarise, verdictOf, type Report } from '../verify/report.ts'
import type { RepairOptions, RepairReport, RepairTable } from '../verify/repair.ts'
import { journalPath, type VerifyOptions } from '../verify/verify.ts'
import { load, quietly, widthOf, type Call } from './call.ts'
import { exitOf, renderProgress, renderRepair, renderReport, reportJson } from './verify.ts'

export type VerifyHost = {
  readonly verify: (
    config: PipelineConfig,
    connectors: Connectors,
    log: Logger,
    options: VerifyOptions,
    controls: { readonly signal: AbortSignal; readonly watch: (report: Report) => void },
  ) => Promise<Report>
  readonly repair: (
    config: PipelineConfig,
    connectors: Connectors,
    log: Logger,
    options: RepairOptions,
    controls: { readonly signal: AbortSignal; readonly watch: (table: RepairTable) => void },
  ) => Promise<RepairReport>
}
type Begin = (file: string, json: boolean, work: (call: Call) => Promise<number>) => Promise<void>
type Flags = {
  readonly json?: boolean
  readonly table?: readonly string[]
  readonly jobs: number
  readonly rate?: number
  readonly maxLoad?: number
  readonly settle: number
  readonly maxRead: number
  readonly showValues?: boolean
  readonly fresh?: boolean
}

/** `verify` and `verify report`. */
export function verifyCommand(program: Command, begin: Begin): void {
  const verify = program
    .command('verify')
    .description('compare both ends row by row, also while it runs; exits with 0 equal, 1 different, 3 not verified')
    .argument('[file]', 'configuration', defaultFile)
    .option('--table <pattern...>', 'only these tables, as in tables.include')
    .option('--jobs <count>', 'parts compared at once, each with a connection to each end', count(1, 64), 4)
    .option('--rate <rows>', 'rows read at the source a second, at most', count(1, 1e9))
    .option('--max-load <sessions>', 'wait while more sessions of others are at work at the source', count(0, 1e6))
    .option(
      '--settle <seconds>',
      'how long a row that differs is read again before it counts as unknown',
      count(1, 86_400),
      60,
    )
    .option('--max-read <seconds>', 'longest statement, and oldest snapshot, at either end', count(1, 86_400), 60)
    .option('--show-values', 'write the values that differ into the report')
    .option('--fresh', 'begin anew where an earlier verification was interrupted')
    .option('--json', 'print JSON, for programs')
    .action(async (file: string, flags: Flags) => {
      await begin(file, flags.json ?? false, async (call) => await compare(call, flags))
    })
  verify
    .command('report')
    .description('what the last verification found')
    .argument('[file]', 'configuration', defaultFile)
    .option('--json', 'print JSON, with every difference')
    .action(async (file: string, _: unknown, command: Command) => {
      const { json } = command.optsWithGlobals<Flags>()
      await begin(file, json ?? false, tell)
    })
}

/** `repair`. */
export function repairCommand(program: Command, begin: Begin): void {
  program
    .command('repair')
    .description('make the rows that the last verification found different what the source has; exits as verify does')
    .argument('[file]', 'configuration', defaultFile)
    .option('--dry-run', 'say what would be written, and write nothing')
    .option('--settle <seconds>', 'how long a row that changes all the time is tried', count(1, 86_400), 60)
    .option('--json', 'print JSON, for programs')
    .action(async (file: string, { json, dryRun, settle }: Flags & { readonly dryRun?: boolean }) => {
      await begin(file, json ?? false, async (call) => {
        const { host } = call
        const { config } = await load(call)
        const options = { dryRun: dryRun ?? false, settleMs: settle * 1000 }
        const controls = { signal: host.stop, watch: () => {} }
        const report = await host.pipeline.repair(config, host.connectors, quietly(call), options, controls)
        const text = call.json
          ? `${JSON.stringify({ v: 1, ...report }, undefined, 2)}\n`
          : renderRepair(report, host.typed, host.out.paint)
        host.out.write(call.mask(text))
        return exitOf[report.verdict]
      })
    })
}

function count(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text)
    if (Number.isInteger(value) && value >= least && value <= most) return value
    throw new InvalidArgumentError(`It has to be a whole number from ${least} to ${most}.`)
  }
}

async function compare(call: Call, flags: Flags): Promise<number> {
  const { host } = call
  const { config } = await load(call)
  const options: VerifyOptions = {
    tables: flags.table === undefined ? undefined : tableFilter(flags.table, []),
    jobs: flags.jobs,
    rate: flags.rate,
    maxLoad: flags.maxLoad,
    settleMs: flags.settle * 1000,
    readMs: flags.maxRead * 1000,
    withValues: flags.showValues ?? false,
    fresh: flags.fresh ?? false,
  }
  const show = progressOn(call)
  const report = await host.pipeline.verify(config, host.connectors, quietly(call), options, {
    signal: host.stop,
    watch: show.watch,
  })
  show.end()
  return write(call, report, report.samples)
}

async function tell(call: Call): Promise<number> {
  const { host, json } = call
  const { config } = await load(call)
  const path = journalPath(config)
  if (!existsSync(path))
    throw new Failure('USAGE', { observed: 'nothing was verified yet', next: `${host.typed} verify` })
  let report: Report | undefined
  const differences: DifferenceLine[] = []
  for await (const line of readJournal(path)) {
    if (line.kind === 'begin') report = emptyReport(line)
    else if (report !== undefined) summarise(report, line)
    if (json && line.kind === 'difference') differences.push(line)
  }
  if (report === undefined)
    throw new Failure('USAGE', { observed: 'nothing was verified yet', next: `${host.typed} verify` })
  return write(call, report, differences)
}

function write({ host, json, mask }: Call, report: Report, differences: readonly DifferenceLine[]): number {
  const text = json
    ? `${JSON.stringify(reportJson(report, differences), undefined, 2)}\n`
    : renderReport(report, { width: widthOf(host.out), typed: host.typed }, host.out.paint)
  host.out.write(mask(text))
  return exitOf[verdictOf(report)]
}

const drawEvery = 200
const lineEvery = 5_000

/** One line, to stderr: redrawn on a terminal, else now and then. */
function progressOn({ host: { err }, json }: Call): { watch: (report: Report) => void; end: () => void } {
  let drawn = Date.now()
  const every = err.isTTY ? drawEvery : lineEvery
  return {
    watch(report) {
      const now = Date.now()
      if (json || now - drawn < every) return
      drawn = now
      err.write(err.isTTY ? `\r\u001b[K${renderProgress(report, now)}` : `${renderProgress(report, now)}\n`)
    },
    end() {
      if (!json && err.isTTY) err.write('\r\u001b[K')
    },
  }
}
