import { Failure, type ErrorCode, type Facts } from '../../src/errors.ts'

/** SQLSTATEs, the longest prefix first. Only what may reach an operator; the rest is a defect of ours. */
const states: readonly (readonly [string, ErrorCode])[] = [
  ['55P03', 'SERVER_BUSY'],
  ['55006', 'SLOT_IN_USE'],
  ['40001', 'SERVER_BUSY'],
  ['40P01', 'SERVER_BUSY'],
  ['53000', 'SERVER_BUSY'],
  ['53100', 'SERVER_BUSY'],
  ['53200', 'SERVER_BUSY'],
  ['53300', 'SERVER_BUSY'],
  ['53400', 'SLOT_LIMIT'],
  ['54', 'LIMIT_EXCEEDED'],
  ['57014', 'SERVER_BUSY'],
  ['57P04', 'DATABASE_MISSING'],
  ['57P0', 'SERVER_UNREACHABLE'],
  ['58030', 'SERVER_BUSY'],
  ['08P01', 'SERVER_UNREACHABLE'],
  ['08', 'SERVER_UNREACHABLE'],
  ['28', 'NO_RIGHTS'],
  ['3D000', 'DATABASE_MISSING'],
  ['3F000', 'TABLE_MISSING'],
  ['42501', 'NO_RIGHTS'],
  ['42P01', 'TABLE_MISSING'],
  ['42703', 'TARGET_SHAPE'],
  ['42804', 'TARGET_SHAPE'],
  ['42P10', 'TARGET_SHAPE'],
  ['428C9', 'TARGET_SHAPE'],
  ['22', 'ROW_REJECTED'],
  ['23', 'ROW_REJECTED'],
  ['44', 'ROW_REJECTED'],
  ['25006', 'SERVER_UNREACHABLE'],
  ['0A000', 'UNSUPPORTED'],
]
const next: Readonly<Record<string, string>> = {
  '25006': 'The server is read-only, perhaps a standby: use the address of the primary',
  '3D000': 'Create the database, or correct its name in the url',
  '53100': 'Free disk space at the server; the run goes on by itself',
  '53300': 'Raise max_connections, or close other sessions; the run goes on by itself',
  '57P03': 'Nothing: the server is starting up or shutting down, and is asked again',
  '28P01': 'Correct user and password in the url',
  '28000': 'Let pg_hba.conf admit this user from this machine, over TLS if it asks for it',
}
const sockets = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'ETIMEDOUT',
  'EPIPE',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'EHOSTDOWN',
  'ENOTFOUND',
  'EAI_AGAIN',
  'ECONNABORTED',
])
const lost =
  /^(Connection terminated|timeout expired|Client has encountered a connection error|Client was closed|The client is not|the database system is)|connection (closed|ended)|socket hang up/i
/** Of the catalog's functions, when what they are asked about is dropped at that moment: asked again, it is missing. */
const vanished = /^(cache lookup failed for|could not open relation with OID) /
const refused = /does not support SSL|establishing an SSL connection|certificate|self.signed|altnames|TLS|SSL routines/i

/**
 * The one door from the driver's errors to ours. Keeps the server's words, never a row's values: its detail and the
 * quoted value of an input error are left out. Errors of ours and of an aborted signal pass as they are.
 */
export function mapError(error: unknown, object?: string): Error {
  if (error instanceof Failure) return error
  if (!(error instanceof Error)) return new Failure('BUG', { observed: String(error), ...about(object) })
  if (error.name === 'AbortError' || error.name === 'TimeoutError') return error
  const code = 'code' in error && typeof error.code === 'string' ? error.code : undefined
  if (error instanceof AggregateError && error.errors.length > 0) return mapError(error.errors[0], object)
  const state = sqlState(error)
  if (state !== undefined) {
    const found = states.find(([prefix]) => state.startsWith(prefix))
    const remedy = next[state]
    return new Failure(found?.[1] ?? (vanished.test(error.message) ? 'SERVER_BUSY' : 'BUG'), {
      ...about(serverObject(error) ?? object),
      observed: `${withoutValues(error.message, state)} (SQLSTATE ${state})`,
      ...(remedy === undefined ? {} : { next: remedy }),
      ...pooler(error.message),
    })
  }
  const facts: Facts = { ...about(object), observed: error.message }
  if (code !== undefined && sockets.has(code)) return new Failure('SERVER_UNREACHABLE', facts)
  if (lost.test(error.message)) return new Failure('SERVER_UNREACHABLE', facts)
  if (
    (code !== undefined && /^(ERR_TLS|ERR_SSL|CERT_|UNABLE_TO|DEPTH_ZERO|SELF_SIGNED)/.test(code)) ||
    refused.test(error.message)
  )
    return new Failure('NO_RIGHTS', {
      ...facts,
      next: 'The TLS connection was refused before any password was sent: set tls.ca to the authority of the server’s certificate and use the name that stands in it',
    })
  if (/^(SASL|password|SCRAM)/i.test(error.message)) return new Failure('NO_RIGHTS', facts)
  return new Failure('BUG', { ...facts, cause: error })
}

/** The five characters, when the error is the server's answer. */
export function sqlState(error: unknown): string | undefined {
  if (!(error instanceof Error) || !('code' in error) || !('severity' in error)) return undefined
  return typeof error.code === 'string' && /^[0-9A-Z]{5}$/.test(error.code) ? error.code : undefined
}

/** What reads tables of ours; undefined where they were never made. */
export async function orNone<T>(read: () => Promise<T>): Promise<T | undefined> {
  try {
    return await read()
  } catch (error) {
    const state = sqlState(error)
    if (state === '42P01' || state === '3F000') return undefined
    throw error
  }
}

function about(object: string | undefined): { object?: string } {
  return object === undefined ? {} : { object }
}

function serverObject(error: Error): string | undefined {
  if (!('table' in error) || typeof error.table !== 'string') return undefined
  const schema = 'schema' in error && typeof error.schema === 'string' ? `${error.schema}.` : ''
  const constraint =
    'constraint' in error && typeof error.constraint === 'string' ? `, constraint ${error.constraint}` : ''
  return `${schema}${error.table}${constraint}`
}

/** Messages of class 22 quote the input: `invalid input syntax for type integer: "…"`, and some of 23514 and 22P02 the label. */
function withoutValues(message: string, state: string): string {
  if (!state.startsWith('22')) return message
  return message
    .replace(/: ?"[^]*$/, '')
    .replace(/"[^"]*"(?= is out of range)/, 'a value')
    .replace(/^value "[^]*" is/, 'a value is')
}

function pooler(message: string): { next?: string } {
  return /unsupported startup parameter/.test(message)
    ? { next: 'This is a connection pooler: give the address of the server itself' }
    : {}
}
