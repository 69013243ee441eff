import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { availableParallelism, cpus, loadavg, release, totalmem } from 'node:os'
import { childrenOf } from '../test/support/processes.ts'

/** Microseconds in one tick of /proc's clock. */
const tick = 1e6 / Number(execFileSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }))

export function machineLine(): string {
  const model = cpus()[0]?.model.trim() ?? 'unknown processor'
  const memory = Math.round(totalmem() / 2 ** 30)
  return `${availableParallelism()} x ${model}, ${memory} GiB, Linux ${release()}, Node ${process.versions.node}`
}

export function load(): number {
  return loadavg()[0] ?? 0
}

/** CPU µs that a process, its children and those it has outlived have used so far. */
export function cpuOf(pid: number): number {
  let ticks = 0
  for (const each of [pid, ...childrenOf(pid)]) {
    const fields = statOf(each)
    ticks += Number(fields[11] ?? 0) + Number(fields[12] ?? 0)
    if (each === pid) ticks += Number(fields[13] ?? 0) + Number(fields[14] ?? 0)
  }
  return ticks * tick
}

/** The fields behind the name, which may hold spaces. */
function statOf(pid: number): readonly string[] {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
    return text.slice(text.lastIndexOf(')') + 2).split(' ')
  } catch {
    return []
  }
}

/** The most bytes a process ever had in memory. */
export function peakMemory(pid: number): number {
  return Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) * 1024
}

export function quantile(values: readonly number[], part: number): number {
  const sorted = values.toSorted((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))] ?? Number.NaN
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5)
}

/** CPU µs of this process, and seconds on the clock. */
export async function measured(work: () => Promise<void> | void): Promise<{ cpu: number; seconds: number }> {
  const began = performance.now()
  const start = process.cpuUsage()
  await work()
  const { user, system } = process.cpuUsage(start)
  return { cpu: user + system, seconds: (performance.now() - began) / 1000 }
}
