import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Scene } from './scene.ts'

/** What `crossfade verify --json` prints. */
export type VerifyReport = {
  readonly verdict: string
  readonly why: string | null
  readonly tables: readonly {
    readonly table: string
    readonly verdict: string
    readonly why: string | null
    readonly source: number
    readonly target: number
    readonly unsettled: number
    readonly transient: number
  }[]
  readonly differences: readonly {
    readonly table: string
    readonly what: string
    readonly key: readonly (string | null)[]
    readonly columns: readonly {
      readonly name: string
      readonly source?: string | null
      readonly target?: string | null
    }[]
    readonly copies?: readonly [number, number]
  }[]
}
export type Verified = { readonly code: number | null; readonly report: VerifyReport }

export async function verified(
  pipeline: Scene,
  args: readonly string[] = [],
  env: NodeJS.ProcessEnv = {},
): Promise<Verified> {
  const { code, stdout, stderr } = await pipeline.command(['verify', '--json', ...args], env)
  try {
    return { code, report: JSON.parse(stdout) as VerifyReport }
  } catch (error) {
    throw new Error(`ended with ${code}:\n${stdout}${stderr}`, { cause: error })
  }
}

/** Each difference as a line: table, what, key, and the columns or numbers of copies. */
export function told(report: VerifyReport): readonly string[] {
  return report.differences.map(({ table, what, key, columns, copies }) => {
    const about = copies === undefined ? columns.map(({ name }) => name).join(',') : copies.join(':')
    return `${table} ${what} ${key.map((part) => part ?? 'null').join(',')} ${about}`
  })
}

export function journalOf({ work, name }: Scene): string {
  return join(work.dir, '.crossfade', `${name}.verify.jsonl`)
}

/** Its whole lines; none where there is no file. */
export async function journalLines(scene: Scene): Promise<readonly Record<string, unknown>[]> {
  const text = await readFile(journalOf(scene), 'utf8').catch(() => '')
  return text
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line) as Record<string, unknown>)
}
