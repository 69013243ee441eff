import { existsSync, mkdirSync, readdirSync, readFileSync, realpathSync, rmSync, statSync } from 'node:fs'
import { mkdir, mkdtemp, open, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { processStart } from './processes.ts'

const uid: number = process.getuid?.() ?? 0

/**
 * The directory for downloaded binaries, templates and data of servers. Outside the checkout, because servers started
 * by root run as another user, who may be unable to read the checkout. Refused if someone else made it.
 */
export function cacheDir(): string {
  const dir = process.env['CROSSFADE_CACHE'] ?? `/var/tmp/crossfade-${uid}`
  mkdirSync(dir, { recursive: true, mode: 0o755 })
  if (process.getuid && statSync(dir).uid !== uid)
    throw new Error(`${dir} belongs to another user; set CROSSFADE_CACHE`)
  return realpathSync(dir)
}

/**
 * The directory `name` of the cache, made by `build` on first use. Safe beside other processes: one builds in a
 * directory of its own, which takes its name only when complete; the others wait for it.
 */
export async function cached(name: string, build: (dir: string) => Promise<void>): Promise<string> {
  const dir = join(cacheDir(), name)
  const lock = `${dir}.lock`
  while (!existsSync(dir)) {
    if (!(await takeLock(lock))) {
      await sleep(50)
      continue
    }
    try {
      if (existsSync(dir)) break
      const draft = `${dir}.draft`
      await rm(draft, { recursive: true, force: true })
      await mkdir(draft, { mode: 0o755 })
      await build(draft)
      await rename(draft, dir)
    } finally {
      await rm(lock, { force: true })
    }
  }
  return dir
}

export function isCached(name: string): boolean {
  return existsSync(join(cacheDir(), name))
}

/** A fresh directory for one server's data. Those of owners that died without a watchdog are swept. */
export async function newRunDir(name: string): Promise<string> {
  const parent = join(cacheDir(), 'run')
  await mkdir(parent, { recursive: true, mode: 0o755 })
  sweep(parent)
  return mkdtemp(join(parent, `${process.pid}.${processStart(process.pid)}.${name}-`))
}

function sweep(parent: string): void {
  for (const entry of readdirSync(parent)) {
    const [pid, start] = entry.split('.')
    if (processStart(Number(pid)) === start) continue
    const dir = join(parent, entry)
    const info = statSync(dir, { throwIfNoEntry: false })
    // The watchdog of an owner that has just ended may still be at work here.
    if (info && Date.now() - info.ctimeMs > 600_000) rmSync(dir, { recursive: true, force: true })
  }
}

async function takeLock(lock: string): Promise<boolean> {
  try {
    const file = await open(lock, 'wx')
    await file.write(`${process.pid} ${processStart(process.pid)}`)
    await file.close()
    return true
  } catch {
    if (isStale(lock)) await rm(lock, { force: true })
    return false
  }
}

function isStale(lock: string): boolean {
  try {
    const [pid, start] = readFileSync(lock, 'utf8').split(' ')
    if (start === undefined) return Date.now() - statSync(lock).mtimeMs > 5_000
    return processStart(Number(pid)) !== start
  } catch {
    return false
  }
}
