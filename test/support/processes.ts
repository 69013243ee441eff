import { spawn } from 'node:child_process'
import { closeSync, openSync, readFileSync, readdirSync } from 'node:fs'
import { createServer } from 'node:net'
import { fileURLToPath } from 'node:url'
import { setTimeout as sleep } from 'node:timers/promises'

/** A server process that outlives no process of ours: see `watchdog.ts`. */
export interface ServerProcess {
  readonly pid: number
  /** True until the process ended. */
  alive(): boolean
  /** Why it ended, for messages. */
  outcome(): string
  signal(signal: NodeJS.Signals): void
  /** Resolves when the process is gone; false when it still lives after `ms`. */
  gone(ms: number): Promise<boolean>
}

interface Launch {
  readonly command: string
  readonly args: readonly string[]
  readonly env?: NodeJS.ProcessEnv
  readonly cwd: string
  readonly logFile: string
}

/** The account for servers when we are root, whom PostgreSQL refuses: nobody, a name that every system can resolve. */
export const account: { uid?: number; gid?: number } = process.getuid?.() === 0 ? nobody() : {}

function nobody(): { uid: number; gid: number } {
  const line = readFileSync('/etc/passwd', 'utf8').match(/^nobody:[^:]*:(\d+):(\d+):/m)
  if (!line) throw new Error('running as root needs the account "nobody" to start servers under')
  return { uid: Number(line[1]), gid: Number(line[2]) }
}

/** Starts a server as the unprivileged account, in a session of its own, its output appended to `logFile`. */
export function launch(start: Launch): Promise<ServerProcess> {
  const log = openSync(start.logFile, 'a')
  const child = spawn(start.command, start.args, {
    cwd: start.cwd,
    env: start.env ?? process.env,
    stdio: ['ignore', log, log],
    detached: true,
    ...account,
  })
  closeSync(log)
  let outcome = ''
  child.once('exit', (code, signal) => (outcome = signal ?? `exit code ${code}`))
  child.unref()
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('spawn', () => {
      const pid = child.pid
      if (pid === undefined) return reject(new Error(`${start.command} has no process id`))
      watch(pid)
      resolve({
        pid,
        alive: () => outcome === '',
        outcome: () => outcome,
        signal: (name) => void child.kill(name),
        gone: (ms) => until(() => outcome !== '', ms),
      })
    })
  })
}

let watchdog: { send(line: string): void } | undefined

/** Tells the watchdog, started on first use, to kill this process when ours ends, however it ends. */
export function watch(pid: number): void {
  tell(`kill ${pid} ${processStart(pid)}`)
}

/** Tells the watchdog to remove this directory when our process ends. */
export function removeAtExit(dir: string): void {
  tell(`remove ${dir}`)
}

function tell(line: string): void {
  watchdog ??= startWatchdog()
  watchdog.send(`${line}\n`)
}

function startWatchdog(): { send(line: string): void } {
  const script = fileURLToPath(new URL('watchdog.ts', import.meta.url))
  const child = spawn(process.execPath, [script], { detached: true, stdio: ['pipe', 'ignore', 'ignore'], cwd: '/' })
  child.unref()
  // Its pipe must not keep our process alive: the end of our process is the signal.
  if ('unref' in child.stdin && typeof child.stdin.unref === 'function') child.stdin.unref()
  return { send: (line) => void child.stdin.write(line) }
}

/** When the process started, as the system tells it; '' when there is none. With the pid it names a process for ever. */
export function processStart(pid: number): string {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? ''
  } catch {
    // Without /proc only life itself can be asked for.
    if (process.platform === 'linux' || !Number.isInteger(pid) || pid <= 0) return ''
    try {
      process.kill(pid, 0)
      return 'alive'
    } catch {
      return ''
    }
  }
}

/** The direct children of a process; empty where the system has no /proc. */
export function childrenOf(pid: number): number[] {
  const children: number[] = []
  if (process.platform !== 'linux') return children
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue
    try {
      const stat = readFileSync(`/proc/${entry}/stat`, 'utf8')
      const parent = stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]
      if (Number(parent) === pid) children.push(Number(entry))
    } catch {
      // Ended while we were looking.
    }
  }
  return children
}

/**
 * A port of 127.0.0.1 that is free now. Below the range the system takes the local ends of connections from: there, a
 * stopped server's port may be taken by a client, or a client that retries may connect to itself.
 */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = 10_000 + Math.floor(Math.random() * 20_000)
    const free = await new Promise<boolean>((resolve) => {
      const probe = createServer()
      probe.once('error', () => resolve(false))
      probe.listen(port, '127.0.0.1', () => probe.close(() => resolve(true)))
    })
    if (free) return port
  }
}

/** Asks every 20 ms until the condition holds; false when it did not within `ms`. */
export async function until(condition: () => boolean | Promise<boolean>, ms: number): Promise<boolean> {
  const deadline = Date.now() + ms
  while (!(await condition())) {
    if (Date.now() > deadline) return false
    await sleep(20)
  }
  return true
}

/** The end of a server's log, for the message of a failure. */
export function logTail(logFile: string, lines = 15): string {
  try {
    return readFileSync(logFile, 'utf8').trimEnd().split('\n').slice(-lines).join('\n')
  } catch {
    return '(no log)'
  }
}
