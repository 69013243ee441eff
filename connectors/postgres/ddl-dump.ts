import { execFile } from 'node:child_process'
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { promisify } from 'node:util'
import type pg from 'pg'
import { Failure } from '../../src/errors.ts'
import type { PostgresConfig } from './config.ts'
import { selectActing, selectKeyObjects, selectNames } from './ddl-catalog.ts'
import type { Section, Sections } from './ddl.ts'
import { literal, qualified, serverVersion } from './queries.ts'
import type { CatalogTable } from './schema.ts'

const run = promisify(execFile)
/** Of a dump without rows; a database with 100,000 tables needs a tenth. */
const maxOutput = 1 << 30

/**
 * The definitions of the whole database by pg_dump, as SQL that needs no tool where it is applied. Before the copy: what
 * pg_dump calls pre-data, and the keys; after it the rest, foreign keys apart. Rejects with UNSUPPORTED where no fitting pg_dump is found.
 */
export async function dumpSections(
  config: PostgresConfig,
  client: pg.ClientBase,
  tables: readonly CatalogTable[],
  signal: AbortSignal,
): Promise<Sections> {
  const version = Math.floor((await serverVersion(client)) / 10_000)
  const bin = await findTools(version, signal)
  if (bin === undefined)
    throw new Failure('UNSUPPORTED', {
      object: 'pg_dump',
      observed: `none of version ${version} or newer is on this machine`,
      needed: `pg_dump and pg_restore of version ${version} or newer`,
      next: `Install postgresql-client-${version}, or set snapshot.schema: tables`,
    })
  const keys = new Set(await selectKeyObjects(client))
  // With them a change would act twice at the target, or not at all.
  const acting = await selectActing(
    client,
    tables.map(({ oid }) => oid),
  )
  const actingObjects = new Set(acting.map(({ object }) => object))
  const isActing = ({ object, words }: Entry): boolean =>
    actingObjects.has(object) || acting.some(({ comment }) => words.startsWith(comment))
  const dir = await mkdtemp(join(tmpdir(), 'crossfade-dump-'))
  try {
    const archive = join(dir, 'archive')
    const { env, args } = access(config, version, bin.version)
    await tool(
      join(bin.dir, 'pg_dump'),
      [
        '--format=custom',
        '--schema-only',
        '--no-owner',
        '--no-privileges',
        '--no-tablespaces',
        '--no-publications',
        '--no-subscriptions',
        '--no-security-labels',
        '--exclude-schema=crossfade',
        '--lock-wait-timeout=30000',
        `--file=${archive}`,
        ...args,
      ],
      env,
      signal,
    )
    const listing = await tool(join(bin.dir, 'pg_restore'), ['--list', archive], env, signal)
    const preData = new Set(
      entries(await tool(join(bin.dir, 'pg_restore'), ['--list', '--section=pre-data', archive], env, signal)).map(
        (entry) => entry.line,
      ),
    )
    const script = async (name: string, chosen: readonly Entry[]): Promise<string> => {
      if (chosen.length === 0) return ''
      const list = join(dir, name)
      await writeFile(list, chosen.map((entry) => `${entry.line}\n`).join(''))
      const text = await tool(join(bin.dir, 'pg_restore'), ['--file=-', `--use-list=${list}`, archive], env, signal)
      // Words to psql, which is not who reads this.
      return text.replaceAll(/^\\(?:un)?restrict .*$/gm, '').replaceAll(/^SET transaction_timeout = .*$/gm, '')
    }
    // An extension's comment belongs to its owner, and comes with it.
    const all = entries(listing).filter((entry) => !entry.words.startsWith('COMMENT - EXTENSION ') && !isActing(entry))
    const isBefore = (entry: Entry): boolean => preData.has(entry.line) || keys.has(entry.object)
    const isForeignKey = (entry: Entry): boolean => entry.words.startsWith('FK CONSTRAINT ')
    const before = all.filter(isBefore)
    const after = all.filter((entry) => !isBefore(entry) && !isForeignKey(entry))
    const foreignKeys = all.filter((entry) => !isBefore(entry) && isForeignKey(entry))
    const there = tables.map((table) => `to_regclass(${literal(qualified(table.table))}) is not null`)
    const section = async (what: string, chosen: readonly Entry[], probes: readonly string[]): Promise<Section> => {
      const sql = await script(what.replaceAll(' ', '-'), chosen)
      if (sql === '') return []
      return [{ what, ...(probes.length === 0 ? {} : { probe: probes.join(' and ') }), sql }]
    }
    const probesOf = async (chosen: readonly Entry[]): Promise<readonly string[]> =>
      (
        await selectNames(
          client,
          chosen.map((entry) => entry.object),
        )
      ).map(probe)
    return {
      before: [await section('definitions', before, there)],
      after: [
        await section('indexes and constraints', after, await probesOf(after)),
        await section('foreign keys', foreignKeys, await probesOf(foreignKeys)),
      ].filter((steps) => steps.length > 0),
      notCopied: [
        'owners',
        'grants',
        'publications and subscriptions',
        'rows of materialized views',
        ...acting.map(({ what }) => `${what}, which would act on replicated rows: create it after the cutover`),
      ],
    }
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
}

/** One line of an archive's list: `<number>; <catalog> <oid> <words>`. `object` is catalog and oid. */
type Entry = { readonly line: string; readonly object: string; readonly words: string }

function entries(listing: string): readonly Entry[] {
  return listing.split('\n').flatMap((line) => {
    const match = /^\d+; (\d+ \d+) (.*)$/.exec(line)
    return match?.[1] === undefined || match[2] === undefined ? [] : [{ line, object: match[1], words: match[2] }]
  })
}

function probe(name: { kind: string; schema: string; table: string | null; name: string }): string {
  const { schema, table } = name
  if (table === null) return `to_regclass(${literal(qualified({ schema, name: name.name }))}) is not null`
  const relation = `to_regclass(${literal(qualified({ schema, name: table }))})`
  return name.kind === 'trigger'
    ? `exists (select from pg_trigger where tgrelid = ${relation} and tgname = ${literal(name.name)})`
    : `exists (select from pg_constraint where conrelid = ${relation} and conname = ${literal(name.name)})`
}

async function tool(
  path: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv,
  signal: AbortSignal,
): Promise<string> {
  try {
    const { stdout } = await run(path, [...args], { env, signal, maxBuffer: maxOutput })
    return stdout
  } catch (error) {
    signal.throwIfAborted()
    const words = error instanceof Error && 'stderr' in error ? String(error.stderr).trim() : String(error)
    throw new Failure('SERVER_BUSY', { object: path, observed: words, cause: error })
  }
}

/** The newest-enough tools: the oldest that will do, since a newer one's output may ask too much of an old target. */
async function findTools(needed: number, signal: AbortSignal): Promise<{ dir: string; version: number } | undefined> {
  const debian = '/usr/lib/postgresql'
  const installed = await readdir(debian).catch(() => [])
  const dirs = [...installed.map((name) => join(debian, name, 'bin')), ...(process.env['PATH'] ?? '').split(delimiter)]
  const found: { dir: string; version: number }[] = []
  for (const dir of new Set(dirs.filter((dir) => dir.startsWith('/')))) {
    for (const name of ['pg_restore', 'pg_dump']) {
      const output = await run(join(dir, name), ['--version'], { signal }).catch(() => undefined)
      const version = Number(/\(PostgreSQL\) (\d+)/.exec(output?.stdout ?? '')?.[1] ?? 0)
      if (version < needed) break
      if (name === 'pg_dump') found.push({ dir, version })
    }
  }
  return found.toSorted((a, b) => a.version - b.version)[0]
}

/** A network that swallows everything ends it within half a minute, as it ends our own connections. */
const patience = 'keepalives=1 keepalives_idle=10 keepalives_interval=5 keepalives_count=4 tcp_user_timeout=30000'

/** How libpq gets there: the password by the environment, never as an argument; the server proved as in our own connections. */
function access(
  config: PostgresConfig,
  server: number,
  client: number,
): { env: NodeJS.ProcessEnv; args: readonly string[] } {
  const { tls } = config
  if (tls?.verify && tls.ca === undefined && client < 16)
    throw new Failure('UNSUPPORTED', {
      object: 'pg_dump',
      observed: `version ${client} cannot use the machine's certificate authorities`,
      needed: 'tls.ca for the source, or pg_dump 16 or newer',
      next: `Set tls.ca, install postgresql-client-${Math.max(16, server)}, or set snapshot.schema: tables`,
    })
  const env: NodeJS.ProcessEnv = {
    PATH: process.env['PATH'],
    LC_ALL: 'C',
    PGCLIENTENCODING: 'UTF8',
    PGCONNECT_TIMEOUT: '10',
    PGAPPNAME: 'crossfade pg_dump',
    PGSSLMODE: tls ? (tls.verify ? 'verify-full' : 'require') : 'disable',
    ...(tls?.verify ? { PGSSLROOTCERT: tls.ca ?? 'system' } : {}),
    ...(tls?.cert === undefined ? {} : { PGSSLCERT: tls.cert }),
    ...(tls?.key === undefined ? {} : { PGSSLKEY: tls.key }),
    ...(config.password === undefined ? {} : { PGPASSWORD: config.password }),
  }
  // As parts of one value, so that a name with an equals sign stays a name.
  const quote = (text: string): string => `'${text.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`
  const target = `host=${quote(config.host)} port=${config.port} user=${quote(config.user)} dbname=${quote(config.database)} ${patience}`
  return { env, args: ['--no-password', `--dbname=${target}`] }
}
