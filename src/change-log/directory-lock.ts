import { link, open, readdir, readFile, rename, unlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Failure } from '../errors.ts'
import { failpoint } from '../failpoint.ts'
import type { Epoch } from '../model.ts'
import { hasEnded, hostAndPid, thisProcess } from '../process-identity.ts'

/** The right to write in a directory. `epoch`: higher for each holder. */
export interface DirectoryLock {
  readonly epoch: Epoch
  /** LOG_DAMAGED if the directory, or our place in it, was taken away: what is written now would be found by nobody (H29). Looks about once a second. */
  demand(): Promise<void>
  release(): Promise<void>
}

const pattern = /^holder-(\d+)$/
const released = 'released'
const lookEvery = 1000

/**
 * Takes a directory for this process. Holders are numbered files: the highest number holds, and only one process can make the next one, which it does
 * once the last holder is gone (as `hasEnded` knows). LOG_IN_USE if it lives, or is on another machine.
 */
export async function lockDirectory(dir: string): Promise<DirectoryLock> {
  for (;;) {
    const last = await highest(dir)
    if (last > 0) {
      const holder = await readHolder(join(dir, `holder-${last}`))
      if (holder !== undefined) refuse(dir, last, holder)
    }
    const epoch = last + 1
    const path = join(dir, `holder-${epoch}`)
    const draft = join(dir, `draft-${process.pid}-${Math.random().toString(36).slice(2)}`)
    await writeDurably(draft, thisProcess())
    try {
      failpoint('log.before-lock')
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
    failpoint('log.after-lock')
    await syncDirectory(dir)
    for (const name of await readdir(dir)) {
      const number = Number(pattern.exec(name)?.[1] ?? epoch)
      if (number < epoch) await unlink(join(dir, name)).catch(() => {})
    }
    let looked = performance.now()
    return {
      epoch,
      async demand() {
        if (performance.now() - looked < lookEvery) return
        if ((await highest(dir).catch(() => 0)) !== epoch) {
          throw new Failure('LOG_DAMAGED', {
            object: `change log in ${dir}`,
            observed: 'it was removed, or another process has taken it over, while this one had it open',
            effect: 'nothing more is published',
            next: 'If it can be brought back, do so and run again; else copy again under another pipeline name',
          })
        }
        looked = performance.now()
      },
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

/** Undefined: released, or gone meanwhile. */
async function readHolder(path: string): Promise<string | undefined> {
  try {
    const text = await readFile(path, 'utf8')
    return text === released ? undefined : text
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return undefined
    throw error
  }
}

function refuse(dir: string, epoch: Epoch, holder: string): void {
  if (hasEnded(holder)) return
  throw new Failure('LOG_IN_USE', {
    object: `change log in ${dir}`,
    observed: `process ${hostAndPid(holder) || 'of an unknown machine'} has it open`,
    next: `Stop that process, or use a broker. If its machine is gone: rm ${join(dir, `holder-${epoch}`)}`,
  })
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
