import { readFileSync } from 'node:fs'
import { isIP } from 'node:net'
import type { ConnectionOptions } from 'node:tls'
import pg from 'pg'
import { z } from 'zod'
import { Failure } from '../../src/errors.ts'
import { destroy } from './copy-out.ts'
import { mapError } from './errors.ts'
import { selectWorking } from './queries.ts'
import { watchSilence } from './silence.ts'

/** Where the server is and how to prove that it is the right one. The password is not enumerable: it shows in no print, log or JSON. */
export type PostgresConfig = {
  readonly host: string
  readonly port: number
  readonly user: string
  readonly database: string
  readonly password?: string | undefined
  /** Absent: no TLS (loopback, or a host that `allowInsecure` names). */
  readonly tls?: Tls
}
/** Files by path: they are read at each connection, so that renewed certificates count. */
type Tls = {
  readonly ca?: string | undefined
  readonly cert?: string | undefined
  readonly key?: string | undefined
  /** False only for a host that `allowInsecure` names. */
  readonly verify: boolean
}
type SessionOptions = {
  /** What the connection is for; the last part of `application_name`. */
  readonly name: string
  readonly pipeline?: string
  readonly replication?: boolean
  /** Default: none. */
  readonly lockTimeoutMs?: number
}
/** What a bad key is and what is wrong with it; `cause` of the CONFIG_INVALID that `parse` throws. `known`: the keys there are beside an unknown one;
 *  `needed`: what a missing one is. */
type ConfigProblem = {
  readonly path: readonly string[]
  readonly message: string
  readonly known?: readonly string[]
  readonly needed?: string
}

const urlForm = 'postgres://user@host:5432/database'
const kind =
  (what: string) =>
  ({ input }: { readonly input?: unknown }): string =>
    input === undefined ? 'missing' : `has to be ${what}`
const text = () => z.string({ error: kind('a text') }).min(1, { error: 'must not be empty' })
const tlsShape = z.strictObject(
  { ca: text().optional(), cert: text().optional(), key: text().optional(), allowInsecure: text().optional() },
  { error: kind('a mapping of keys to values') },
)
const shape = z.strictObject({ url: text(), tls: tlsShape.optional() })
const sslModes = ['disable', 'allow', 'prefer', 'require', 'verify-ca', 'verify-full', 'no-verify']
const connectionTimeoutMs = 10_000

/** Checks the connection's part of a configuration. Throws CONFIG_INVALID naming every bad key, never a secret. */
export function parse(raw: unknown): PostgresConfig {
  const parsed = shape.safeParse(raw)
  if (!parsed.success) {
    throw invalid(
      parsed.error.issues.flatMap((issue): readonly ConfigProblem[] => {
        const path = issue.path.map(String)
        if (issue.code === 'unrecognized_keys') {
          const known = Object.keys((path[0] === 'tls' ? tlsShape : shape).shape)
          return issue.keys.map((key) => ({ path: [...path, key], message: 'unknown key', known }))
        }
        return [{ path, message: issue.message, ...(path[0] === 'url' && { needed: urlForm }) }]
      }),
    )
  }
  const problems: ConfigProblem[] = []
  const problem = (message: string, ...path: string[]): void => void problems.push({ path, message })
  const { url: text, tls = {} } = parsed.data
  const url = URL.canParse(text) ? new URL(text) : undefined
  if (!url || (url.protocol !== 'postgres:' && url.protocol !== 'postgresql:') || url.hostname === '') {
    throw invalid([{ path: ['url'], message: `needs the form ${urlForm}` }])
  }
  const host = url.hostname.replace(/^\[(.*)\]$/, '$1')
  const files = { ca: tls.ca, cert: tls.cert, key: tls.key }
  let mode: string | undefined
  for (const [key, value] of url.searchParams) {
    if (key === 'sslmode') mode = value
    else if (key === 'sslrootcert') files.ca ??= value
    else if (key === 'sslcert') files.cert ??= value
    else if (key === 'sslkey') files.key ??= value
    else if (key !== 'application_name' && key !== 'connect_timeout')
      problem(`does not take the parameter ${key}: session settings are fixed`, 'url')
  }
  const insecure = tls.allowInsecure === host
  if (tls.allowInsecure !== undefined && !insecure)
    problem(`names ${tls.allowInsecure}, but the url's host is ${host}`, 'tls', 'allowInsecure')
  if (mode !== undefined && !sslModes.includes(mode)) problem(`sslmode ${mode} does not exist`, 'url')
  const plain = mode === 'disable' || (mode === undefined && isLoopback(host) && files.ca === undefined)
  if (mode === 'disable' && !isLoopback(host) && !insecure)
    problem(`sslmode=disable sends rows and passwords unprotected: only with tls.allowInsecure: ${host}`, 'url')
  const weak = mode !== undefined && mode !== 'disable' && mode !== 'verify-full'
  if (weak && sslModes.includes(mode ?? '') && !insecure)
    problem(
      `sslmode=${mode} does not prove which server answers: use verify-full with tls.ca, or set tls.allowInsecure: ${host}`,
      'url',
    )
  if ((files.cert === undefined) !== (files.key === undefined))
    problem('a client certificate needs both cert and key', 'tls')
  for (const [name, path] of Object.entries(files)) {
    if (path === undefined) continue
    try {
      readFileSync(path)
    } catch (error) {
      problem(`cannot be read: ${error instanceof Error ? error.message : String(error)}`, 'tls', name)
    }
  }
  const part = (text: string, name: string): string => {
    try {
      return decodeURIComponent(text)
    } catch {
      problem(`has a malformed percent sign in the ${name}`, 'url')
      return ''
    }
  }
  const user = part(url.username, 'user')
  if (user === '') problem('names no user', 'url')
  const database = part(url.pathname.slice(1), 'database') || user
  const password = url.password === '' ? process.env['PGPASSWORD'] : part(url.password, 'password')
  if (problems.length > 0) throw invalid(problems)
  const config: PostgresConfig = {
    host,
    port: url.port === '' ? 5432 : Number(url.port),
    user,
    database,
    ...(plain ? {} : { tls: { ...files, verify: !weak } }),
  }
  return Object.defineProperty(config, 'password', { value: password, enumerable: false })
}

function invalid(problems: readonly ConfigProblem[]): Failure {
  const observed = problems.map(({ path, message }) => `${path.join('.') || 'connection'}: ${message}`).join('\n')
  return new Failure('CONFIG_INVALID', { observed, cause: problems })
}

/** For people: `host:port/database`. */
export function address(config: PostgresConfig): string {
  return `${isIP(config.host) === 6 ? `[${config.host}]` : config.host}:${config.port}/${config.database}`
}

/** Settings every session of ours runs under: what a value prints as and reads as must not depend on a server's or role's defaults. */
const pinned: Readonly<Record<string, string>> = {
  client_encoding: 'UTF8',
  timezone: 'UTC',
  datestyle: 'ISO, YMD',
  intervalstyle: 'postgres',
  extra_float_digits: '3',
  bytea_output: 'hex',
  xmlbinary: 'base64',
  xmloption: 'content',
  lc_monetary: 'C',
  lc_numeric: 'C',
  standard_conforming_strings: 'on',
  array_nulls: 'on',
  search_path: 'pg_catalog',
  // Hidden rows are an error, not an empty copy.
  row_security: 'off',
  statement_timeout: '0',
  idle_in_transaction_session_timeout: '0',
  idle_session_timeout: '0',
  default_transaction_isolation: 'read committed',
  default_transaction_read_only: 'off',
  default_transaction_deferrable: 'off',
  client_min_messages: 'warning',
  quote_all_identifiers: 'off',
  jit: 'off',
  // What a worker that vanished with its machine or network has locked is free again after half a minute.
  tcp_keepalives_idle: '10',
  tcp_keepalives_interval: '5',
  tcp_keepalives_count: '4',
  tcp_user_timeout: '30000',
}

/** A client that is not connected yet. For connections that need no more than the startup packet, such as a replication stream. */
export function clientConfig(config: PostgresConfig, options: SessionOptions): pg.ClientConfig {
  const settings = { ...pinned, lock_timeout: String(options.lockTimeoutMs ?? 0) }
  const name = ['crossfade', options.pipeline, options.name].filter((part) => part !== undefined).join(' ')
  const made: pg.ClientConfig = {
    host: config.host,
    port: config.port,
    user: config.user,
    database: config.database,
    ...(config.password === undefined ? {} : { password: config.password }),
    ssl: config.tls ? ssl(config.tls) : false,
    enableChannelBinding: config.tls !== undefined,
    application_name: cut(name, 63),
    connectionTimeoutMillis: connectionTimeoutMs,
    keepAlive: true,
    keepAliveInitialDelayMillis: 10_000,
    options: Object.entries(settings)
      .map(([key, value]) => `-c ${key}=${value.replaceAll(' ', '\\ ')}`)
      .join(' '),
  }
  return made
}

/** The client configuration that a replication service opens its connection with. */
export function replicationOptions(config: PostgresConfig, name: string, pipeline?: string): pg.ClientConfig {
  return clientConfig(config, { name, ...(pipeline === undefined ? {} : { pipeline }) })
}

/**
 * Opens a session with the pinned settings. The caller ends it. Rejects within 10 s: SERVER_UNREACHABLE with host and
 * port, NO_RIGHTS, DATABASE_MISSING. A connection lost later is reported by whatever query runs then; an `error`
 * event is always listened to, so it never ends the process.
 */
export async function connect(
  config: PostgresConfig,
  options: SessionOptions,
  signal: AbortSignal,
): Promise<pg.Client> {
  signal.throwIfAborted()
  const replication = options.replication ? { replication: 'database' } : {}
  const client = new pg.Client({ ...clientConfig(config, options), ...replication })
  client.on('error', () => {})
  endWhenSilent(client, config)
  // Asking to end would wait for an answer.
  const abandon = (): void => destroy(client)
  signal.addEventListener('abort', abandon, { once: true })
  try {
    await client.connect()
    // Only from version 17 on, and unknown names are refused at startup.
    const { rows } = await client.query<{ server_version_num: string }>('show server_version_num')
    if (Number(rows[0]?.server_version_num) >= 170000) await client.query('set transaction_timeout = 0')
    signal.throwIfAborted()
    return client
  } catch (error) {
    abandon()
    signal.throwIfAborted()
    throw mapError(error, address(config))
  } finally {
    signal.removeEventListener('abort', abandon)
  }
}

/** Ends the connection when nothing will come over it any more; every one from `connect` is watched already. */
export function endWhenSilent(
  client: pg.Client,
  config: PostgresConfig,
  options: { readonly always?: boolean; readonly silenceMs?: number } = {},
): void {
  watchSilence(client, { object: address(config), works: (pid, signal) => isWorking(config, pid, signal), ...options })
}

async function isWorking(config: PostgresConfig, pid: number, signal: AbortSignal): Promise<boolean> {
  const client = new pg.Client(clientConfig(config, { name: 'sign of life' }))
  client.on('error', () => {})
  const abandon = (): void => destroy(client)
  signal.addEventListener('abort', abandon, { once: true })
  try {
    await client.connect()
    return await selectWorking(client, pid)
  } finally {
    signal.removeEventListener('abort', abandon)
    void close(client)
  }
}

/** Ends a session. Whatever the server is doing, it is not waited for longer than a moment. */
export async function close(client: pg.Client): Promise<void> {
  const timer = setTimeout(() => destroy(client), 2_000)
  try {
    await client.end()
  } catch {
    // It was gone before.
  } finally {
    clearTimeout(timer)
  }
}

/** `verify` checks the chain and, by default of the TLS layer, the name or address. Nothing below 1.2. */
function ssl(tls: Tls): ConnectionOptions {
  const read = (path: string | undefined): string | undefined =>
    path === undefined ? undefined : readFileSync(path, 'utf8')
  const ca = read(tls.ca)
  const cert = read(tls.cert)
  const key = read(tls.key)
  return {
    minVersion: 'TLSv1.2',
    rejectUnauthorized: tls.verify,
    ...(ca === undefined ? {} : { ca }),
    ...(cert === undefined ? {} : { cert }),
    ...(key === undefined ? {} : { key }),
  }
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'))
}

/** At most `bytes` bytes of UTF-8, never half a character. */
function cut(text: string, bytes: number): string {
  let kept = text
  while (Buffer.byteLength(kept) > bytes) kept = kept.slice(0, -1)
  return kept.toWellFormed()
}
