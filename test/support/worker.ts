import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { cacheDir } from './cache.ts'
import { removeAtExit, watch } from './processes.ts'

const main = fileURLToPath(new URL('../../src/main.ts', import.meta.url))

/** A folder with a configuration file, and crossfade processes started in it. */
export interface Workplace extends AsyncDisposable {
  readonly dir: string
  run(options?: { readonly env?: NodeJS.ProcessEnv; readonly args?: readonly string[] }): Worker
  /** Another command that runs until it is stopped. */
  start(args: readonly string[], env?: NodeJS.ProcessEnv): Worker
  /** Any other command, to its end. */
  command(args: readonly string[], env?: NodeJS.ProcessEnv): Promise<Ended>
}
export type Ended = {
  readonly code: number | null
  readonly signal: string | null
  readonly stdout: string
  readonly stderr: string
}
export interface Worker {
  readonly pid: number
  /** Ends by itself, or by `stop` or `kill9`. */
  readonly ended: Promise<Ended>
  /** What it printed so far: both streams, and standard output alone. */
  output(): string
  printed(): string
  stop(): Promise<Ended>
  kill9(): Promise<Ended>
}

/** `yaml`: the configuration file's text. What is still running at the end is killed. */
export async function workplace(yaml: string): Promise<Workplace> {
  const dir = await mkdtemp(join(tmpdir(), 'crossfade-work-'))
  removeAtExit(dir)
  await writeFile(join(dir, 'crossfade.yaml'), yaml)
  const children = new Set<ChildProcess>()
  const start = (
    args: readonly string[],
    env: NodeJS.ProcessEnv,
  ): { child: ChildProcess; text: { out: string; err: string }; ended: Promise<Ended> } => {
    const child = spawn(process.execPath, [main, ...args], {
      cwd: dir,
      // Compiled once for all: a worker starts in half the time, and without the memory that reading TypeScript takes.
      env: { ...process.env, NO_COLOR: '1', INIT_CWD: dir, NODE_COMPILE_CACHE: join(cacheDir(), 'compiled'), ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    children.add(child)
    if (child.pid !== undefined) watch(child.pid)
    const text = { out: '', err: '' }
    child.stdout?.on('data', (data: Buffer) => (text.out += data.toString()))
    child.stderr?.on('data', (data: Buffer) => (text.err += data.toString()))
    const ended = once(child, 'close').then(([code, signal]: unknown[]) => {
      children.delete(child)
      return { code: code as number | null, signal: signal as string | null, stdout: text.out, stderr: text.err }
    })
    return { child, text, ended }
  }
  const worker = (args: readonly string[], env: NodeJS.ProcessEnv): Worker => {
    const { child, text, ended } = start(args, env)
    const signalled = async (signal: NodeJS.Signals): Promise<Ended> => {
      child.kill(signal)
      return await ended
    }
    return {
      pid: child.pid ?? 0,
      ended,
      output: () => text.out + text.err,
      printed: () => text.out,
      stop: () => signalled('SIGTERM'),
      kill9: () => signalled('SIGKILL'),
    }
  }
  return {
    dir,
    run: ({ env = {}, args = [] } = {}) => worker(['run', 'crossfade.yaml', ...args], env),
    start: (args, env = {}) => worker(args, env),
    command: async (args, env = {}) => await start(args, env).ended,
    async [Symbol.asyncDispose]() {
      for (const child of children) child.kill('SIGKILL')
      while (children.size > 0) await sleep(20)
      await rm(dir, { recursive: true, force: true })
    },
  }
}

/** The most bytes the process ever had in memory. */
export async function peakMemory(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8')
  return Number(/VmHWM:\s+(\d+) kB/.exec(status)?.[1]) * 1024
}

/** Asks until nothing is wrong any more; rejects with what still was, and the worker's words, at the deadline or when the worker ended. */
export async function until(
  wrong: () => Promise<readonly string[]>,
  { seconds, worker }: { readonly seconds: number; readonly worker?: Worker },
): Promise<void> {
  const deadline = performance.now() + seconds * 1000
  let ended: Ended | undefined
  void worker?.ended.then((end) => (ended = end))
  for (;;) {
    const asked = performance.now()
    const found = await wrong()
    if (found.length === 0) return
    if (performance.now() > deadline || ended !== undefined) {
      const why = ended === undefined ? `after ${seconds} s` : `the worker ended with ${ended.code}`
      throw new Error(`${why}:\n${found.join('\n')}\n${worker?.output().slice(-6000) ?? ''}`)
    }
    // What compares whole tables again and again must not take the machine from what it waits for.
    await sleep(Math.max(200, 2 * (performance.now() - asked)))
  }
}
