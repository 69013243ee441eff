import { link, open, readdir, readFile, rename, unlink, writeFile } from 'node:fs/promises'
import { readFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { Failure } from '../errors.ts'
import type { Epoch } from '../model.ts'

/** The right to write in a directory. `epoch`: higher for each holder. */
export interface DirectoryLock {
  readonly epoch: Epoch
  release(): Promise<void>
}
type Holder = { readonly host: string; readonly pid: number; readonly start: string }

const pattern = /^holder-(\d+)$/
const released = 'released'

/**
 * Takes a directory for this process. Holders are numbered files: the highest number holds, and only one process can make the next one, which it does
 * once the last holder is gone (by process id and start time, so a reused id does not count). LOG_IN_USE if it lives, or is on another machine.
 */
export async function lockDirectory(dir: string): Promise<DirectoryLock> {
  const me: Holder = { host: hostname(), pid: process.pid, start: processStart(process.pid) }
  for (;;) {
    const last = await highest(dir)
    if (last > 0) {
      const holder = await readHolder(join(dir, `holder-${last}`))
      if (holder !== undefined) refuse(dir, last, holder)
    }
    const epoch = last + 1
    const path = join(dir, `holder-${epoch}`)
    const draft = join(dir, `draft-${process.pid}-${Math.random().toString(36).slice(2)}`)
    await writeDurably(draft, JSON.stringify(me))
    try {
      await link(draft, path)
    } catch (error) {
      if (errorCode(error) === 'EEXIST') continue
      throw error
    } finally {
      await unlink(draft)
    }
    if ((await highest(dir)) !== epoch) {
      // Others came and went between our look and our file.
      await unlink(path)
      continue
    }
    await syncDirectory(dir)
    for (const name of await readdir(dir)) {
      const number = Number(pattern.exec(name)?.[1] ?? epoch)
      if (number < epoch) await unlink(join(dir, name)).catch(() => {})
    }
    return {
      epoch,
      async release() {
        const note = `${path}.${released}`
        await writeFile(note, released)
        await rename(note, path)
      },
    }
  }
}

async function highest(dir: string): Promise<number> {
  const numbers = (await readdir(dir)).map((name) => Number(pattern.exec(name)?.[1] ?? 0))
  return Math.max(0, ...numbers)
}

async function readHolder(path: string): Promise<Holder | undefined> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return undefined
    throw error
  }
  if (text === released) return undefined
  try {
    const value: unknown = JSON.parse(text)
    if (typeof value === 'object' && value !== null && 'host' in value && 'pid' in value && 'start' in value)
      return { host: String(value.host), pid: Number(value.pid), start: String(value.start) }
  } catch {
    // Not ours to understand: treated as a holder nobody can ask.
  }
  return { host: '', pid: 0, start: '' }
}

function refuse(dir: string, epoch: Epoch, holder: Holder): void {
  const here = holder.host === hostname()
  if (here && processStart(holder.pid) !== holder.start) return
  throw new Failure('LOG_IN_USE', {
    object: `change log in ${dir}`,
    observed: here
      ? `process ${holder.pid} has it open`
      : `process ${holder.pid} on ${holder.host || 'an unknown machine'} has it open`,
    ...(here ? {} : { next: `If that machine is gone: rm ${join(dir, `holder-${epoch}`)}` }),
  })
}

/** Names a process for ever, together with its id: start time and boot. '' if there is none. */
function processStart(pid: number): string {
  if (process.platform === 'linux') {
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
      // A zombie in the system's sense holds nothing any more.
      if (fields[0] === 'Z' || fields[0] === 'X') return ''
      return `${fields[19] ?? ''} ${readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()}`
    } catch {
      return ''
    }
  }
  try {
    process.kill(pid, 0)
    return 'alive'
  } catch (error) {
    return errorCode(error) === 'EPERM' ? 'alive' : ''
  }
}

export async function writeDurably(path: string, content: string): Promise<void> {
  await using file = await open(path, 'w')
  await file.writeFile(content)
  await file.sync()
}

/** Makes new names in a directory survive a power cut. */
export async function syncDirectory(dir: string): Promise<void> {
  await using handle = await open(dir, 'r')
  await handle.sync()
}

export function errorCode(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : undefined
}
