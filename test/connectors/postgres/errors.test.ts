import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { mapError } from '../../../connectors/postgres/errors.ts'
import { Failure, type ErrorCode } from '../../../src/errors.ts'

function server(code: string, message: string, more: object = {}): Error {
  return Object.assign(new Error(message), { code, severity: 'ERROR', ...more })
}
function socket(code: string): Error {
  return Object.assign(new Error(`connect ${code} 127.0.0.1:1`), { code })
}

describe('mapError', () => {
  const cases: readonly (readonly [Error, ErrorCode])[] = [
    [server('08006', 'x'), 'SERVER_UNREACHABLE'],
    [server('57P01', 'terminating connection'), 'SERVER_UNREACHABLE'],
    [server('57P03', 'the database system is starting up'), 'SERVER_UNREACHABLE'],
    [server('40001', 'x'), 'SERVER_BUSY'],
    [server('40P01', 'deadlock detected'), 'SERVER_BUSY'],
    [server('55P03', 'x'), 'SERVER_BUSY'],
    [server('53300', 'sorry, too many clients already'), 'SERVER_BUSY'],
    [server('53100', 'could not extend file: No space left on device'), 'SERVER_BUSY'],
    [server('53400', 'all replication slots are in use'), 'SLOT_LIMIT'],
    [server('42501', 'permission denied for table t'), 'NO_RIGHTS'],
    [server('28P01', 'password authentication failed'), 'NO_RIGHTS'],
    [server('3D000', 'database "x" does not exist'), 'DATABASE_MISSING'],
    [server('42P01', 'relation "t" does not exist'), 'TABLE_MISSING'],
    [server('23505', 'duplicate key value'), 'ROW_REJECTED'],
    [server('22P02', 'invalid input syntax'), 'ROW_REJECTED'],
    [server('XX000', 'cache lookup failed for index 25261'), 'SERVER_BUSY'],
    [server('42601', 'syntax error'), 'BUG'],
    [socket('ECONNREFUSED'), 'SERVER_UNREACHABLE'],
    [socket('ECONNRESET'), 'SERVER_UNREACHABLE'],
    [socket('EPIPE'), 'SERVER_UNREACHABLE'],
    [socket('ENOTFOUND'), 'SERVER_UNREACHABLE'],
    [new AggregateError([socket('ECONNREFUSED'), socket('ECONNREFUSED')], ''), 'SERVER_UNREACHABLE'],
    [new Error('Connection terminated unexpectedly'), 'SERVER_UNREACHABLE'],
    [new Error('Connection terminated due to connection timeout'), 'SERVER_UNREACHABLE'],
    [new Error('timeout expired'), 'SERVER_UNREACHABLE'],
    [new Error('Client has encountered a connection error and is not queryable'), 'SERVER_UNREACHABLE'],
    [new Error('The server does not support SSL connections'), 'NO_RIGHTS'],
    [Object.assign(new Error('self-signed certificate'), { code: 'DEPTH_ZERO_SELF_SIGNED_CERT' }), 'NO_RIGHTS'],
    [new TypeError('x is not a function'), 'BUG'],
  ]
  for (const [error, code] of cases) {
    test(`${error.message || error.name} is ${code}`, () => {
      const mapped = mapError(error, 'here')
      assert.ok(mapped instanceof Failure)
      assert.equal(mapped.code, code)
      assert.equal(mapped.facts.object, 'here')
    })
  }

  test('keeps no values of rows', () => {
    const detail = { detail: 'Key (email)=(geheim@x.de) already exists.' }
    const named = { schema: 'public', table: 't', constraint: 't_email_key' }
    const errors = [
      server('23505', 'duplicate key value violates unique constraint "t_email_key"', { ...detail, ...named }),
      server('22P02', 'invalid input syntax for type integer: "geheim"'),
      server('22003', 'value "geheim" is out of range for type integer'),
      server('22P02', 'invalid input value for enum mood: "geheim"'),
      server('22007', 'invalid input syntax for type date: "ge"heim"'),
      server('22008', 'date/time field value out of range: "geheim"'),
    ]
    for (const error of errors) {
      const mapped = mapError(error)
      assert.ok(mapped instanceof Failure)
      assert.doesNotMatch(mapped.message + JSON.stringify(mapped.facts), /geheim|heim/)
      assert.equal(mapped.cause, undefined)
    }
    assert.match(mapError(errors[0]).message, /public\.t, constraint t_email_key/)
  })

  test('lets errors of ours and of aborted signals pass', () => {
    const ours = new Failure('FENCED')
    const aborted = AbortSignal.abort().reason as Error
    assert.equal(mapError(ours), ours)
    assert.equal(mapError(aborted), aborted)
  })
})
