import { sql } from './postgres.ts'
import type { Scene } from './scene.ts'

type Rows = readonly {
  readonly table: string
  readonly key: readonly (string | null)[]
  readonly verdict: string
  readonly what?: string
  readonly columns: readonly string[]
  readonly why?: string
  readonly rechecks: number
}[]

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
    readonly rows: Rows
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
export function rowsTold(rows: Rows): readonly string[] {
  return rows.map(
    ({ table, key, verdict, what, columns }) =>
      `${table} ${key.join(',')} ${verdict === 'unknown' ? verdict : `${what} ${columns.join(',')}`}`,
  )
}

type Kept = {
  readonly walks: number
  readonly open: { readonly rows: Rows }
  readonly changes: { readonly looked: number; readonly passedOver: number }
}

/** What it last wrote down, which the status is made from; asked for in no time. */
export async function kept({ name, target }: Scene): Promise<Kept | undefined> {
  const [row] = await sql<{ value: Kept }>(
    target,
    `select value from crossfade.state where pipeline = $1 and key = 'watch'`,
    [name],
  )
  return row?.value
}

/** For `until`. */
export async function unlessKept(pipeline: Scene, wanted: readonly string[]): Promise<readonly string[]> {
  const now = await kept(pipeline)
  const rows = rowsTold(now?.open.rows ?? [])
  return rows.toSorted().join('\n') === wanted.toSorted().join('\n') ? [] : [JSON.stringify(now)]
}

/** For `until`. */
export async function unlessWalked(pipeline: Scene, walks: number): Promise<readonly string[]> {
  const now = await kept(pipeline)
  return (now?.walks ?? 0) >= walks ? [] : [JSON.stringify(now)]
}
