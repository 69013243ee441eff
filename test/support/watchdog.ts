// Ends the servers of a test process when that process ends, however it ends: its end closes our standard input.
// Lines: `kill <pid> <start>` and `remove <directory>`.
import { rmSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { processStart, until } from './processes.ts'

const servers: { pid: number; start: string }[] = []
const directories: string[] = []

function alive(server: { pid: number; start: string }): boolean {
  return processStart(server.pid) === server.start
}

function signalAll(signal: NodeJS.Signals): void {
  for (const server of servers) {
    try {
      if (alive(server)) process.kill(server.pid, signal)
    } catch {
      // Ended meanwhile.
    }
  }
}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => undefined)

for await (const line of createInterface({ input: process.stdin })) {
  const [verb, first = '', second = ''] = line.split(' ')
  if (verb === 'kill') servers.push({ pid: Number(first), start: second })
  if (verb === 'remove') directories.push(line.slice('remove '.length))
}

// A stopped process takes no signal but SIGKILL. SIGQUIT lets PostgreSQL take its children along; Java survives it.
signalAll('SIGCONT')
signalAll('SIGQUIT')
await until(() => !servers.some(alive), 1_000)
signalAll('SIGKILL')
await until(() => !servers.some(alive), 5_000)
for (const directory of directories) rmSync(directory, { recursive: true, force: true, maxRetries: 5 })
