import type { Scene } from './scene.ts'

/** What `status --json` tells of verification. */
export type Told = {
  readonly verdict: string
  readonly why?: string
  readonly oldest?: number
  readonly last: { readonly verdict: string; readonly rows: number; readonly differences: number } | null
  readonly continuous: {
    readonly walks: number
    readonly changes: {
      readonly followed: boolean
      readonly upTo: string | null
      readonly looked: number
      readonly passedOver: number
    }
    readonly rows: readonly {
      readonly table: string
      readonly key: readonly (string | null)[]
      readonly verdict: string
      readonly what?: string
      readonly columns: readonly string[]
      readonly why?: string
      readonly rechecks: number
    }[]
    readonly more: number
    readonly trouble: { readonly code: string } | null
  } | null
}

export async function toldBy(pipeline: Scene): Promise<Told | null> {
  const { stdout, stderr } = await pipeline.command(['status', '--json'])
  const { verification } = JSON.parse(stdout === '' ? '{}' : stdout) as { readonly verification?: Told | null }
  if (verification === undefined) throw new Error(stdout + stderr)
  return verification
}

/** The rows that are told to differ or to be in doubt, one line each. */
export function rowsTold(told: Told | null): readonly string[] {
  const rows = told?.continuous?.rows ?? []
  return rows.map(
    ({ table, key, verdict, what, columns }) =>
      `${table} ${key.join(',')} ${verdict === 'unknown' ? verdict : `${what} ${columns.join(',')}`}`,
  )
}

/** For `until`. */
export async function unlessTold(pipeline: Scene, wanted: readonly string[]): Promise<readonly string[]> {
  const told = await toldBy(pipeline)
  const rows = rowsTold(told)
  return rows.toSorted().join('\n') === wanted.toSorted().join('\n') ? [] : [JSON.stringify(told)]
}

/** For `until`. */
export async function unlessWalked(pipeline: Scene, walks: number): Promise<readonly string[]> {
  const told = await toldBy(pipeline)
  return (told?.continuous?.walks ?? 0) >= walks ? [] : [JSON.stringify(told)]
}
