import { existsSync } from 'node:fs'
import { InvalidArgumentError, Option, type Command } from 'commander'
import { defaultFile } from '../config/load-config.ts'
import type { PipelineConfig } from '../config/pipeline-config.ts'
import { tableFilter } from '../config/table-pattern.ts'
import { Failure } from '../errors.ts'
import type { Logger } from '../logger.ts'
import type { Connectors } from '../parts.ts'
import { verificationJson } from '../status.ts'
import type { ContinuousOptions } from '../verify/continuous.ts'
import { readJournal } from '../verify/journal.ts'
import { emptyReport, summarise, verdictOf, type Report } from '../verify/report.ts'
import type { RepairOptions, RepairReport, RepairTable } from '../verify/repair.ts'
import { journalPath, type VerifyOptions } from '../verify/verify.ts'
import type { Verification } from '../verify/watched.ts'
import { load, quietly, widthOf, type Call } from './call.ts'
import { renderVerification } from './verification.ts'
import { failureJson } from './report.ts'
import { formatCount, shorten } from './format.ts'
import {
  differenceJson,
  exitOf,
  oneLine,
  renderProgress,
  renderRepair,
  renderReport,
  reportJson,
  rowsRead,
  type Paced,
} from './verify.ts'

export type VerifyHost = {
  readonly verify: (
    config: PipelineConfig,
    connectors: Connectors,
    log: Logger,
    options: VerifyOptions,
    controls: { readonly signal: AbortSignal; readonly watch: (report: Report) => void },
  ) => Promise<Report>
  readonly verifyUntilStopped: (
    config: PipelineConfig,
    connectors: Connectors,
    log: Logger,
    options: ContinuousOptions,
    controls: { readonly signal: AbortSignal; readonly watch: (report: Report) => void },
  ) => Promise<Verification | undefined>
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
  readonly continuous?: boolean
  readonly only?: 'schema' | 'data'
}

/** `verify` and `verify report`. */
export function verifyCommand(program: Command, begin: Begin): void {
  const verify = program
    .command('verify')
    .description('compare both ends, definitions and rows, also while it runs; equal only if all of it is')
    .argument('[file]', 'configuration', defaultFile)
    .option('--table <pattern>', 'only tables that match, such as public.order*; may be given again', each)
    .addOption(new Option('--only <part>', 'only what tables are made of, or only rows').choices(['schema', 'data']))
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
    .option('--show-values', 'write the values that differ into the report, which stays in a file')
    .option('--fresh', 'begin anew where an earlier verification was interrupted')
    .option(
      '--continuous',
      'for ever, until it is stopped: walk after walk, and rows soon after they change; of the options above it heeds --rate and --max-load',
    )
    .option('--json', 'print JSON, for programs')
    .addHelpText(
      'after',
      `
Writes to neither end's tables. Interrupted or killed, the next one goes on.
Exit codes: 0 equal, 1 different, 3 not verified, 5 a server is away, 130 Ctrl-C.`,
    )
    .action(async (file: string, flags: Flags) => {
      const work = flags.continuous === true ? goOn : compare
      await begin(file, flags.json ?? false, async (call) => await work(call, flags))
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
    .description('make the rows that the last verification found different what the source has')
    .argument('[file]', 'configuration', defaultFile)
    .option('--dry-run', 'say what would be written, and write nothing')
    .option('--settle <seconds>', 'how long a row that changes all the time is tried', count(1, 86_400), 60)
    .option('--json', 'print JSON, for programs')
    .addHelpText(
      'after',
      `
Each row is read again at both ends before it is written, and left alone if it
is equal by then. The pipeline has to run, or be a full copy that is complete.
Exit codes: 0 equal now, 1 some differ, 3 not everything is known.`,
    )
    .action(async (file: string, { json, dryRun, settle }: Flags & { readonly dryRun?: boolean }) => {
      await begin(file, json ?? false, async (call) => {
        const { host } = call
        const { config } = await load(call)
        const options = { dryRun: dryRun ?? false, settleMs: settle * 1000 }
        const line = progressLine(call)
        let last = ''
        const watch = ({ table, told, copied, removed, right, written }: RepairTable): void => {
          const done = dryRun === true ? copied + removed + right : written
          const what = dryRun === true ? 'read again' : 'written'
          last = `${oneLine(table)}: ${formatCount(done)} of ${formatCount(told)} rows ${what}`
          line.show(() => last)
        }
        const report = await interruptible(
          call,
          line,
          async () =>
            await host.pipeline.repair(config, host.connectors, quietly(call), options, { signal: host.stop, watch }),
          () =>
            `${last === '' ? 'nothing was written' : last}. What is written stays; ${host.typed} repair goes on with the rest`,
        )
        const text = call.json
          ? `${JSON.stringify({ v: 1, ...report }, undefined, 2)}\n`
          : renderRepair(report, { width: widthOf(host.out), typed: host.typed }, host.out.paint)
        host.out.write(call.mask(text))
        return exitOf[report.verdict]
      })
    })
}

/** Not variadic: that would take the file for one more. */
const each = (text: string, former: readonly string[] = []): readonly string[] => [...former, text]

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
    only: flags.only,
  }
  const line = progressLine(call)
  let last: Report | undefined
  let since: Paced | undefined
  const watch = (report: Report): void => {
    last = report
    since ??= { at: Date.now(), rows: rowsRead(report) }
    const began = since
    line.show(() => renderProgress(report, began, Date.now()))
  }
  line.show(() => 'looking at both ends')
  const report = await interruptible(
    call,
    line,
    async () =>
      await host.pipeline.verify(config, host.connectors, quietly(call), options, { signal: host.stop, watch }),
    () =>
      last === undefined
        ? 'nothing was compared yet'
        : `${formatCount(rowsRead(last))} rows are compared, and kept; ${host.typed} verify goes on from there`,
  )
  return write(call, report)
}

/** What a signal ends is told, with what it leaves to go on from. */
async function interruptible<T>(
  { host, json }: Call,
  line: ProgressLine,
  work: () => Promise<T>,
  left: () => string,
): Promise<T> {
  try {
    return await work()
  } catch (error) {
    if (!host.stop.aborted) throw error
    line.end()
    if (json)
      host.out.write(
        `${JSON.stringify({ v: 1, error: failureJson(new Failure('INTERRUPTED', { observed: left() })) })}\n`,
      )
    else host.err.write(`Stopped: ${left()}.\n`)
    throw host.stop.reason
  } finally {
    line.end()
  }
}

async function goOn(call: Call, flags: Flags): Promise<number> {
  const { host, json } = call
  const { table, fresh, showValues } = flags
  if (table !== undefined || fresh === true || showValues === true)
    throw new Failure('USAGE', { observed: '--table, --fresh and --show-values have no meaning with --continuous' })
  const { config } = await load(call)
  const { rate = config.verify.rate, maxLoad = config.verify.maxLoad } = flags
  const line = progressLine(call)
  let since: (Paced & { readonly of: Report }) | undefined
  const watch = (report: Report): void => {
    if (since?.of.begin !== report.begin) since = { of: report, at: Date.now(), rows: rowsRead(report) }
    // It runs for months: what nobody looks at is told by the status.
    const began = since
    if (host.err.isTTY) line.show(() => renderProgress(report, began, Date.now()))
  }
  const verification = await host.pipeline.verifyUntilStopped(
    config,
    host.connectors,
    quietly(call),
    { rate, maxLoad },
    { signal: host.stop, watch },
  )
  line.end()
  if (json)
    host.out.write(
      call.mask(`${JSON.stringify({ v: 1, pipeline: config.name, verification: verificationJson(verification) })}\n`),
    )
  else if (verification !== undefined)
    host.out.write(
      call.mask(`${renderVerification(verification, widthOf(host.out), host.out.paint, Date.now()).join('\n')}\n`),
    )
  return exitOf[verification?.standing.verdict ?? 'unknown']
}

async function tell(call: Call): Promise<number> {
  const { host, json } = call
  const { config } = await load(call)
  const path = journalPath(config)
  if (!existsSync(path))
    throw new Failure('USAGE', { observed: 'nothing was verified yet', next: `${host.typed} verify` })
  let report: Report | undefined
  for await (const line of readJournal(path)) {
    if (line.kind === 'begin') report = emptyReport(line)
    else if (report !== undefined) summarise(report, line)
  }
  if (report === undefined)
    throw new Failure('USAGE', { observed: 'nothing was verified yet', next: `${host.typed} verify` })
  if (!json) return write(call, report)
  const [before, after] = JSON.stringify(reportJson(report, []), undefined, 2).split('"differences": []')
  // However many there are.
  host.out.write(`${call.mask(before ?? '')}"differences": [`)
  let first = true
  for await (const line of readJournal(path)) {
    if (line.kind !== 'difference') continue
    host.out.write(call.mask(`${first ? '' : ','}\n    ${JSON.stringify(differenceJson(line))}`))
    first = false
  }
  host.out.write(`${first ? '' : '\n  '}]${after ?? ''}\n`)
  return exitOf[verdictOf(report)]
}

function write({ host, json, mask }: Call, report: Report): number {
  const text = json
    ? `${JSON.stringify(reportJson(report, report.samples), undefined, 2)}\n`
    : renderReport(report, { width: widthOf(host.out), typed: host.typed }, host.out.paint)
  host.out.write(mask(text))
  return exitOf[verdictOf(report)]
}

const drawEvery = 200
const lineEvery = 5_000

type ProgressLine = { readonly show: (text: () => string) => void; readonly end: () => void }

/** One line, to stderr: redrawn on a terminal, also while nothing new comes, else now and then; none beside JSON. */
function progressLine({ host: { err }, json }: Call): ProgressLine {
  let drawn = err.isTTY ? 0 : Date.now()
  let timer: NodeJS.Timeout | undefined
  let last = (): string => ''
  const draw = (): void => {
    drawn = Date.now()
    err.write(err.isTTY ? `\r\u001b[K${shorten(last(), err.columns - 1)}` : `${last()}\n`)
  }
  return {
    show(text) {
      if (json) return
      last = text
      if (err.isTTY) timer ??= setInterval(draw, 1000).unref()
      if (Date.now() - drawn >= (err.isTTY ? drawEvery : lineEvery)) draw()
    },
    end() {
      if (timer === undefined) return
      clearInterval(timer)
      timer = undefined
      err.write('\r\u001b[K')
    },
  }
}
