#!/usr/bin/env node
import { readFileSync } from 'node:fs'
import { findPackageJSON } from 'node:module'
import { constants } from 'node:os'
import { relative } from 'node:path'
import pino from 'pino'
import { connectors } from '../connectors/index.ts'
import { runCli, type Host } from './cli/commands.ts'
import type { Screen } from './cli/live.ts'
import { paintFor, renderFailure, type Paint } from './cli/report.ts'
import { nearest } from './config/near.ts'
import { asFailure, Failure } from './errors.ts'
import { checkPipeline, readStatus } from './inspect.ts'
import { runPipeline } from './pipeline.ts'
import { verifyUntilStopped } from './verify/continuous.ts'
import { repairPipeline } from './verify/repair.ts'
import { verifyPipeline } from './verify/verify.ts'

/** Found from here upwards: the sources and the compiled package lie at different depths. */
function version(): string {
  const file = findPackageJSON(import.meta.url)
  const { version } = JSON.parse(readFileSync(file ?? '', 'utf8')) as { readonly version: string }
  return version
}

/** `npm run crossfade -- check` and `npx crossfade check` say what they are; `node <path> check` is seen. */
function typed(): string {
  const { npm_lifecycle_event: script, npm_command: command } = process.env
  if (script === 'crossfade') return 'npm run -s crossfade --'
  if (command === 'exec' && script === 'npx') return 'npx crossfade'
  const path = process.argv[1] ?? ''
  return path.endsWith('.ts') ? `node ${relative(process.cwd(), path)}` : 'crossfade'
}

const stop = new AbortController()
type Ending = 'SIGINT' | 'SIGTERM' | 'SIGHUP'
let stoppedBy: Ending | undefined
const exitCode = (signal: Ending): number => 128 + constants.signals[signal]
const onSignal = (signal: Ending): void => {
  if (stoppedBy !== undefined) {
    process.stderr.write('\nStopped at once. Run again: it carries on where it was.\n')
    process.exit(exitCode(signal))
  }
  stoppedBy = signal
  stop.abort(new Failure('INTERRUPTED'))
  // On a terminal the view says it; a line of ours would be drawn over.
  if (!process.stdout.isTTY)
    process.stderr.write('Stopping: what is in hand is finished first; once more to stop at once.\n')
}
process.on('SIGINT', onSignal)
process.on('SIGTERM', onSignal)
// The terminal is gone: nobody sees it any more, and what is in hand is finished all the same.
process.on('SIGHUP', onSignal)

const screen = (stream: NodeJS.WriteStream): Screen & { readonly paint: Paint } => ({
  // A reader that went away, as `head` does, is no reason to stop a migration.
  write: (text) => void stream.write(text),
  get isTTY() {
    return stream.isTTY
  },
  get columns() {
    return stream.columns
  },
  get rows() {
    return stream.rows
  },
  paint: paintFor(stream),
})
for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {})

process.on('uncaughtException', (error) => {
  process.stderr.write(renderFailure(asFailure(error), 80, paintFor(process.stderr)))
  process.exit(1)
})

const host: Host = {
  version: version(),
  typed: typed(),
  env: process.env,
  // Package managers change the folder and say where they were called from.
  cwd: process.env['INIT_CWD'] ?? process.cwd(),
  out: screen(process.stdout),
  err: screen(process.stderr),
  types: Object.keys(connectors),
  connectors: async (type) => {
    const open = Object.hasOwn(connectors, type) ? connectors[type] : undefined
    if (open) return await open()
    const types = Object.keys(connectors)
    const near = nearest(type, types)
    throw new Failure('CONFIG_INVALID', {
      observed: `there is no connector ${type}`,
      needed: `one of ${types.join(', ')}`,
      ...(near !== undefined && { next: `Did you mean ${near}?` }),
    })
  },
  logger: ({ file, level, mask }) => {
    const to = pino.destination({
      dest: file ?? 2,
      sync: true,
      ...(file !== undefined && { append: true, mkdir: true }),
    })
    return pino(
      { level: process.env['CROSSFADE_LOG'] ?? level, base: null },
      { write: (line: string) => to.write(mask(line)) },
    )
  },
  stop: stop.signal,
  exit: () => exitCode(stoppedBy ?? 'SIGINT'),
  pipeline: {
    check: checkPipeline,
    run: runPipeline,
    status: readStatus,
    verify: verifyPipeline,
    verifyUntilStopped,
    repair: repairPipeline,
  },
}

const code = await runCli(process.argv.slice(2), host)
// Both pipes are written out before the end.
await new Promise<void>((resolve) => process.stdout.write('', () => process.stderr.write('', () => resolve())))
process.exit(code)
