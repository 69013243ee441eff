import assert from 'node:assert/strict'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { uniqueName } from './kills.ts'
import { sql } from './postgres.ts'
import { compareTables } from './shop.ts'
import { until, workplace, type Ended, type Worker, type Workplace } from './worker.ts'

/** Stands as the password in every address, and must never be printed. */
export const secret = 'Tops3cret-w0rd'

/** Two databases, and a pipeline between them whose file takes both addresses from the environment. */
export interface Scene extends AsyncDisposable {
  readonly name: string
  readonly source: string
  readonly target: string
  readonly work: Workplace
  run(args?: readonly string[], env?: NodeJS.ProcessEnv): Worker
  /** `run`, that ends by itself: its exit code and the error it printed for programs. */
  refused(env?: NodeJS.ProcessEnv): Promise<Refusal>
  /** Another command that runs until it is stopped. */
  start(args: readonly string[], env?: NodeJS.ProcessEnv): Worker
  command(args: readonly string[], env?: NodeJS.ProcessEnv): Promise<Ended>
  /** What is wrong with `tables` at the target: for `until`. */
  differences(tables?: readonly string[]): Promise<readonly string[]>
}
type Told = {
  readonly object?: string
  readonly observed?: string
  readonly needed?: string
  readonly next?: string
}
type Refusal = Ended & { readonly error: Told & { readonly code: string; readonly all?: readonly Told[] } }

export async function scene({
  source,
  target,
  name = uniqueName('scene'),
  mode = 'full',
  log = '{ type: embedded, partitions: 2 }',
  include = 'public.*',
  exclude,
  more = '',
}: {
  readonly source: string
  readonly target: string
  readonly name?: string
  readonly mode?: 'full' | 'incremental' | 'hybrid'
  readonly log?: string
  readonly include?: string
  readonly exclude?: string
  /** Lines at the end of the file. */
  readonly more?: string
}): Promise<Scene> {
  const work = await workplace(`name: ${name}
mode: ${mode}
source: { type: postgres, url: "\${env:SOURCE_URL}" }
target: { type: postgres, url: "\${env:TARGET_URL}" }
tables: { include: ["${include}"]${exclude === undefined ? '' : `, exclude: ["${exclude}"]`} }
log: ${log}
${more}`)
  const addresses = { SOURCE_URL: withPassword(source), TARGET_URL: withPassword(target) }
  const command = async (args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<Ended> => {
    const end = await work.command([...args, 'crossfade.yaml'], { ...addresses, ...env })
    keepsSecret(end)
    return end
  }
  return {
    name,
    source,
    target,
    work,
    run: (args = [], env = {}) => work.run({ args, env: { ...addresses, ...env } }),
    start: (args, env = {}) => work.start([...args, 'crossfade.yaml'], { ...addresses, ...env }),
    command,
    async refused(env = {}) {
      const end = await command(['run', '--json'], env)
      const last = end.stdout.trimEnd().split('\n').at(-1) ?? ''
      const { error } = JSON.parse(last || '{}') as { readonly error?: Refusal['error'] }
      if (error === undefined) throw new Error(`ended with ${end.code} and no error:\n${end.stdout}${end.stderr}`)
      return { ...end, error }
    },
    differences: async (tables = ['thing']) =>
      await compareTables(source, target, tables).catch((error: unknown) => [String(error)]),
    [Symbol.asyncDispose]: async () => await work[Symbol.asyncDispose](),
  }
}

/** Another choice of tables, for the starts from now on. */
export async function configure(
  { work, name }: Pick<Scene, 'work' | 'name'>,
  {
    include,
    exclude = [],
    mode = 'hybrid',
    more = '',
  }: {
    readonly include: readonly string[]
    readonly exclude?: readonly string[]
    readonly mode?: 'full' | 'incremental' | 'hybrid'
    readonly more?: string
  },
): Promise<void> {
  await writeFile(
    join(work.dir, 'crossfade.yaml'),
    `name: ${name}
mode: ${mode}
source: { type: postgres, url: "\${env:SOURCE_URL}" }
target: { type: postgres, url: "\${env:TARGET_URL}" }
tables: ${JSON.stringify({ include, exclude })}
log: { type: embedded, partitions: 2 }
${more}
`,
  )
}

/** A table of `rows` rows with a key. */
export async function createThings(url: string, rows = 1000): Promise<void> {
  await sql(url, 'create table thing (id int primary key, name text)')
  await sql(url, `insert into thing select i, 'thing ' || i from generate_series(1, ${rows}) i`)
}

/** One error only, of this code, ended with its exit code; with what everyone must be told. */
export function assertRefusal({ code, error }: Refusal, expected: string, exit: number): void {
  assert.equal(error.code, expected, JSON.stringify(error))
  assert.equal(code, exit)
  for (const told of error.all ?? [error]) {
    assert.ok((told.observed ?? '') !== '', `nothing observed: ${JSON.stringify(told)}`)
    assert.ok((told.next ?? '') !== '', `no next step: ${JSON.stringify(told)}`)
  }
}

/** The finding about `object` of a preflight that found blockers. */
export function blocker(refusal: Refusal, object: string): Told {
  assertRefusal(refusal, 'CHECK_FAILED', 1)
  const found = refusal.error.all?.find((each) => each.object === object)
  if (found === undefined) throw new Error(`no ${object} in ${JSON.stringify(refusal.error.all)}`)
  assert.ok((found.needed ?? '') !== '', `nothing needed: ${JSON.stringify(found)}`)
  return found
}

/** Runs the next step of a finding as it stands, comments and all. */
export async function follow(url: string, told: Told): Promise<void> {
  await sql(url, told.next ?? '')
}

/** Slots and publications of a pipeline at its source. */
export async function leftAtSource({ source, name }: Pick<Scene, 'source' | 'name'>): Promise<readonly string[]> {
  const rows = await sql<{ what: string }>(
    source,
    `select 'slot ' || slot_name as what from pg_replication_slots where slot_name like $1
     union all select 'publication ' || pubname from pg_publication where pubname like $1`,
    [`crossfade\\_${name}%`],
  )
  return rows.map(({ what }) => what)
}

/** `run` to the consistent end of a `full` pipeline: both ends equal, nothing of ours left at the source. */
export async function assertCompletes(scene: Scene, tables: readonly string[] = ['thing']): Promise<void> {
  const end = await scene.command(['run'])
  assert.equal(end.code, 0, end.stdout + end.stderr)
  assert.deepEqual(await scene.differences(tables), [])
  assert.deepEqual(await leftAtSource(scene), [])
}

/** Both ends equal, before `seconds` have passed, by a worker that still runs. */
export async function untilEqual(
  scene: Scene,
  worker: Worker,
  seconds = 80,
  tables: readonly string[] = ['thing'],
): Promise<void> {
  await until(async () => await scene.differences(tables), { seconds, worker })
}

export function keepsSecret({ stdout, stderr }: Pick<Ended, 'stdout' | 'stderr'>): void {
  assert.ok(!(stdout + stderr).includes(secret), 'the password was printed')
}

function withPassword(url: string): string {
  const parsed = new URL(url)
  parsed.password = secret
  return parsed.href
}
