import { randomBytes } from 'node:crypto'
import pg from 'pg'
import { kafkaMissing, startKafka } from './kafka.ts'
import { postgresMissing, sql, startPostgres, type PostgresVersion } from './postgres.ts'

/** What a test may need. `pg` is PostgreSQL 18. */
export type Need = 'pg' | 'pg15' | 'pg14' | 'kafka'

/** A server that others use at the same moment: databases are ours, settings, roles and slots' number are not. */
interface SharedPostgres {
  readonly version: PostgresVersion
  /** For a superuser and database postgres. */
  readonly adminUrl: string
  url(database: string, user?: string): string
  /** Creates a database of a fresh name and resolves to its address. Dropped, its slots too, when our process ends. */
  database(prefix: string, template?: string): Promise<string>
}

interface SharedKafka {
  readonly brokers: readonly string[]
  /** Fresh at each call: what topics and groups of the caller start with. */
  readonly prefix: string
}

const running = new Map<PostgresVersion, Promise<SharedPostgres>>()
let brokers: Promise<readonly string[]> | undefined

/** The shared PostgreSQL of this version: at the address in the environment, else started once for this process. */
export function postgres(version: PostgresVersion = 18): Promise<SharedPostgres> {
  let server = running.get(version)
  if (!server) {
    server = openPostgres(version)
    running.set(version, server)
  }
  return server
}

/** The shared Kafka: at the addresses in the environment (comma list), else one node started once for this process. */
export async function kafka(): Promise<SharedKafka> {
  brokers ??= openKafka()
  return { brokers: await brokers, prefix: `${fresh('t')}.` }
}

/**
 * Options for a test or suite: skipped, with the reason, where a server can be neither reached nor started; unless
 * CROSSFADE_TEST_REQUIRE names it: then the test runs, and fails where it asks for the server.
 */
export function needs(...all: readonly Need[]): { skip: string | false } {
  const required = (process.env['CROSSFADE_TEST_REQUIRE'] ?? '').split(',')
  for (const need of all) {
    const reason = required.includes(need) ? undefined : missing(need)
    if (reason !== undefined) return { skip: reason }
  }
  return { skip: false }
}

/** The reason why a server can be neither reached nor started, or undefined. */
export function missing(need: Need): string | undefined {
  if (process.env[addressVariable(need)]) return undefined
  // Set by the test runner, which has tried.
  const tried = process.env[missingVariable(need)]
  if (tried) return tried
  return need === 'kafka' ? kafkaMissing() : postgresMissing(versionOf(need))
}

/** The variable that holds the address of a server. */
export function addressVariable(need: Need): string {
  return `CROSSFADE_TEST_${(need === 'pg' ? 'pg18' : need).toUpperCase()}`
}

/** The variable that says why a server could not be started, so that no test file tries again. */
export function missingVariable(need: Need): string {
  return `${addressVariable(need)}_MISSING`
}

export function versionOf(need: Exclude<Need, 'kafka'>): PostgresVersion {
  switch (need) {
    case 'pg':
      return 18
    case 'pg15':
      return 15
    case 'pg14':
      return 14
    default:
      return need satisfies never
  }
}

function needOf(version: PostgresVersion): Exclude<Need, 'kafka'> {
  switch (version) {
    case 18:
      return 'pg'
    case 15:
      return 'pg15'
    case 14:
      return 'pg14'
    default:
      return version satisfies never
  }
}

async function openPostgres(version: PostgresVersion): Promise<SharedPostgres> {
  const need = needOf(version)
  const given = process.env[addressVariable(need)]
  const reason = given ? undefined : missing(need)
  if (reason !== undefined) throw new Error(reason)
  const adminUrl = given ? given : (await startPostgres({ version })).adminUrl
  const made: string[] = []
  if (given) dropAtExit(adminUrl, made)
  const server: SharedPostgres = {
    version,
    adminUrl,
    url(database, user) {
      const url = new URL(adminUrl)
      url.pathname = `/${encodeURIComponent(database)}`
      if (user !== undefined) url.username = encodeURIComponent(user)
      return url.href
    },
    async database(prefix, template = 'template0') {
      const name = fresh(prefix)
      await sql(adminUrl, `create database ${pg.escapeIdentifier(name)} template ${pg.escapeIdentifier(template)}`)
      made.push(name)
      return server.url(name)
    },
  }
  return server
}

async function openKafka(): Promise<readonly string[]> {
  const given = process.env[addressVariable('kafka')]
  if (given) return given.split(',')
  const reason = missing('kafka')
  if (reason !== undefined) throw new Error(reason)
  return (await startKafka()).brokers
}

function fresh(prefix: string): string {
  return `${prefix}_${randomBytes(5).toString('hex')}`
}

/** A server at a given address lives on after us: what we made goes, when nothing else is left to do. */
function dropAtExit(adminUrl: string, names: string[]): void {
  process.on('beforeExit', () => {
    const name = names.pop()
    if (name === undefined) return
    // Resolved either way: the loop empties again and the next name has its turn.
    dropDatabase(adminUrl, name).catch((error: unknown) => console.error(`could not drop database ${name}: ${error}`))
  })
}

async function dropDatabase(adminUrl: string, name: string): Promise<void> {
  const client = new pg.Client({ connectionString: adminUrl })
  await client.connect()
  try {
    await client.query('select pg_terminate_backend(pid) from pg_stat_activity where datname = $1', [name])
    const slots = await client.query<{ slot_name: string }>(
      'select slot_name from pg_replication_slots where database = $1 and not temporary',
      [name],
    )
    for (const { slot_name: slot } of slots.rows) {
      // Its reader may need a moment to leave.
      for (let attempt = 1; ; attempt++) {
        try {
          await client.query('select pg_drop_replication_slot($1)', [slot])
          break
        } catch (error) {
          if (attempt === 20) throw error
          await client.query('select pg_sleep(0.05)')
        }
      }
    }
    await client.query(`drop database if exists ${pg.escapeIdentifier(name)} with (force)`)
  } finally {
    await client.end()
  }
}
