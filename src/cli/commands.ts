import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { basename, dirname, join, relative, resolve } from 'node:path'
import { Command, CommanderError } from 'commander'
import { defaultFile } from '../config/load-config.ts'
import { editorSchema, type PipelineConfig } from '../config/pipeline-config.ts'
import type { Finding } from '../connector.ts'
import { asFailure, codes, Failure } from '../errors.ts'
import type { Logger } from '../logger.ts'
import type { Connectors } from '../parts.ts'
import { statusJson, type Status } from '../status.ts'
import { configTemplate, nameFrom } from './init.ts'
import { load, quietly, widthOf, type Call } from './call.ts'
import { live, type Screen } from './live.ts'
import { copiedText } from './progress.ts'
import { countFindings, failureJson, renderFailure, renderFindings, type Paint } from './report.ts'
import { renderStatus } from './status.ts'
import { repairCommand, verifyCommand, type VerifyHost } from './verify-command.ts'

/** What a command needs of the world; `main.ts` gives the real one. */
export type Host = {
  readonly version: string
  /** What was typed before the command's name, so that a next step can be copied: `crossfade`, or a script of a package. */
  readonly typed: string
  readonly env: Readonly<Record<string, string | undefined>>
  /** The folder that files are named from. */
  readonly cwd: string
  readonly out: Screen & { readonly paint: Paint }
  readonly err: Screen & { readonly paint: Paint }
  /** Names of the connectors there are, and the way to one. */
  readonly types: readonly string[]
  readonly connectors: Connectors
  /** The process's logger: to stderr, or to `file`; `mask` hides the secrets of the configuration. */
  readonly logger: (options: {
    readonly file?: string
    readonly level: string
    readonly mask: (text: string) => string
  }) => Logger
  /** Aborts with the first SIGINT or SIGTERM: finish what is in hand. `exit`: its exit code, for commands that have nothing to finish. */
  readonly stop: AbortSignal
  readonly exit: () => number
  readonly pipeline: VerifyHost & {
    readonly check: (
      config: PipelineConfig,
      connectors: Connectors,
      log: Logger,
      signal: AbortSignal,
    ) => Promise<readonly Finding[]>
    readonly run: (
      config: PipelineConfig,
      connectors: Connectors,
      log: Logger,
      controls: { readonly stop: AbortSignal; readonly signal: AbortSignal; readonly watch: (status: Status) => void },
    ) => Promise<'complete' | 'stopped'>
    readonly status: (
      config: PipelineConfig,
      connectors: Connectors,
      log: Logger,
      signal: AbortSignal,
    ) => Promise<Status>
  }
}

type Flags = { readonly json?: boolean }
/** Runs one command; resolves to the exit code. Never rejects for what a user can cause. */
export async function runCli(args: readonly string[], host: Host): Promise<number> {
  const over = new AbortController()
  let exit = 0
  const call: Call = {
    host,
    file: '',
    json: args.includes('--json'),
    signal: over.signal,
    mask: (text) => text,
    locate: () => undefined,
    findsOut: false,
  }
  const program = new Command('crossfade')
    .description('Copies a live database into another one and keeps it in step.')
    .version(host.version, '-V, --version', 'print the version')
    .helpCommand(false)
    .showSuggestionAfterError()
    .exitOverride()
    .configureOutput({
      writeOut: (text) => host.out.write(text),
      writeErr: (text) => host.err.write(text),
      outputError: () => {},
      getOutHelpWidth: () => widthOf(host.out),
      getErrHelpWidth: () => widthOf(host.err),
    })
  const command = (name: string, about: string, work: (call: Call) => Promise<number>): void => {
    program
      .command(name)
      .description(about)
      .argument('[file]', `configuration`, defaultFile)
      .option('--json', 'print JSON, for programs')
      .action(async (file: string, { json = false }: Flags) => {
        exit = await work(Object.assign(call, { file: resolve(host.cwd, file), json }))
      })
  }
  command('init', 'write a commented configuration to start from', init)
  command('check', 'look at both ends and say what would stand in the way; changes nothing', check)
  command('run', 'copy, then follow the changes, for as long as it runs; the first Ctrl-C ends it cleanly', run)
  command('status', 'say where a pipeline stands', status)
  const begin = async (file: string, json: boolean, work: (call: Call) => Promise<number>): Promise<void> => {
    exit = await work(Object.assign(call, { file: resolve(host.cwd, file), json, findsOut: true }))
  }
  verifyCommand(program, begin)
  repairCommand(program, begin)
  try {
    await program.parseAsync(args, { from: 'user' })
    return exit
  } catch (error) {
    if (error instanceof CommanderError) {
      if (error.exitCode === 0) return 0
      if (error.code === 'commander.help') return codes.USAGE.exit
      const observed = error.message.replace(/^error: /, '').replace(/\n\(?(Did you mean [^)]*)\)?$/s, '; $1')
      return fail(new Failure('USAGE', { observed }), call)
    }
    if (host.stop.aborted && error === host.stop.reason) return host.exit()
    return fail(asFailure(error), call)
  } finally {
    over.abort()
  }
}

function fail(raised: Failure, { host, json, mask, locate, findsOut }: Call): number {
  const { key, object } = raised.facts
  const place = key === undefined ? undefined : locate(key)
  const failure =
    place === undefined ? raised : new Failure(raised.code, { ...raised.facts, object: `${object ?? key} (${place})` })
  if (json) host.out.write(`${mask(JSON.stringify({ v: 1, error: failureJson(failure) }))}\n`)
  else host.err.write(mask(renderFailure(failure, widthOf(host.err), host.err.paint)))
  const { exit } = codes[failure.code]
  return findsOut && exit === 1 ? 3 : exit
}

async function init({ host, file, json }: Call): Promise<number> {
  const { typed } = host
  const shown = relative(host.cwd, file) || file
  if (existsSync(file)) {
    throw new Failure('USAGE', {
      object: shown,
      observed: 'the file exists, and is left as it is',
      next: `Name another one: ${typed} init ${shown.replace(/(\.ya?ml)?$/, '-2.yaml')}`,
    })
  }
  const schema = join(dirname(file), '.crossfade', 'schema.json')
  mkdirSync(dirname(schema), { recursive: true })
  writeFileSync(schema, `${JSON.stringify(editorSchema(), undefined, 2)}\n`)
  const [type = 'unknown'] = host.types
  // `wx`: not even if it appeared just now.
  writeFileSync(file, configTemplate(nameFrom(basename(dirname(file))), type, './.crossfade/schema.json'), {
    flag: 'wx',
  })
  if (json) host.out.write(`${JSON.stringify({ v: 1, file })}\n`)
  else {
    const argument = shown === defaultFile ? '' : ` ${shown}`
    host.out.write(`Wrote ${shown}. Next:\n
  export SOURCE_URL=${type}://user@host/database TARGET_URL=${type}://user@host/database
  ${typed} check${argument}
  ${typed} run${argument}\n`)
  }
  return 0
}

async function check(call: Call): Promise<number> {
  const { host, json } = call
  const { config } = await load(call)
  const findings = await host.pipeline.check(config, host.connectors, quietly(call), host.stop)
  const counts = countFindings(findings)
  if (json)
    host.out.write(
      `${call.mask(JSON.stringify({ v: 1, pipeline: config.name, ready: counts.blocker + counts.unknown === 0, counts, findings }))}\n`,
    )
  else host.out.write(call.mask(renderFindings(findings, widthOf(host.out), host.out.paint)))
  // A server that let nobody in outweighs what was found at the other.
  const away = findings.find(({ code }) => code !== undefined && codes[code].exit === codes.SERVER_UNREACHABLE.exit)
  if (away?.code !== undefined) return codes[away.code].exit
  return counts.blocker > 0 ? 1 : counts.unknown > 0 ? 3 : 0
}

async function run(call: Call): Promise<number> {
  const { host, json } = call
  const { config } = await load(call)
  const drawn = host.out.isTTY && !json
  const logFile = join(config.dir, `${config.name}.log`)
  if (drawn) mkdirSync(config.dir, { recursive: true })
  const log = host.logger({ level: 'info', mask: call.mask, ...(drawn && { file: logFile }) })
  const screen = { ...sizeOf(host.out), write: (text: string) => host.out.write(call.mask(text)) }
  const view = live(screen, host.out.paint, { json })
  let outcome: 'complete' | 'stopped'
  let last: Status | undefined
  try {
    outcome = await host.pipeline.run(config, host.connectors, log, {
      stop: host.stop,
      signal: call.signal,
      watch: (status) => view.show((last = status)),
    })
  } finally {
    view.end()
  }
  if (json) host.out.write(`${JSON.stringify({ v: 1, pipeline: config.name, outcome })}\n`)
  else host.out.write(`${farewell(config.name, outcome, last, host)}\n`)
  return 0
}

/** A terminal may change its size at any time. */
function sizeOf(screen: Screen): Omit<Screen, 'write'> {
  return {
    isTTY: screen.isTTY,
    get columns() {
      return screen.columns
    },
    get rows() {
      return screen.rows
    },
  }
}

function farewell(name: string, outcome: 'complete' | 'stopped', last: Status | undefined, host: Host): string {
  const { paint } = host.out
  return outcome === 'complete'
    ? `${paint('green', '✓')} ${name} is complete: ${copiedText(last?.tables ?? [])}.`
    : `${paint('green', '✓')} ${name} stopped cleanly. ${host.typed} run carries on from here.`
}

async function status(call: Call): Promise<number> {
  const { host, json } = call
  const { config } = await load(call)
  const now = await host.pipeline.status(config, host.connectors, quietly(call), host.stop)
  const text = json
    ? `${JSON.stringify(statusJson(now), undefined, 2)}\n`
    : renderStatus(now, widthOf(host.out), host.out.paint)
  host.out.write(call.mask(text))
  return 0
}
