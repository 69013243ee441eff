import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer, type Server, type Socket } from 'node:net'
import { describe, test } from 'node:test'
import pg from 'pg'
import { connect, parse, replicationOptions } from '../../../connectors/postgres/config.ts'
import { Failure, type ErrorCode } from '../../../src/errors.ts'
import { freePort } from '../../support/processes.ts'
import { needs, postgres } from '../../support/servers.ts'

const signal = AbortSignal.timeout(60_000)

describe('connect', needs('pg'), () => {
  test('says which server does not answer, and why another does not let us in', async () => {
    const port = await freePort()
    await fails(`postgres://u@127.0.0.1:${port}/d`, 'SERVER_UNREACHABLE', new RegExp(`127\\.0\\.0\\.1:${port}`))
    const { adminUrl } = await postgres()
    const missing = new URL(adminUrl)
    missing.pathname = '/no_such_database'
    await fails(missing.href, 'DATABASE_MISSING', /no_such_database/)
    const nobody = new URL(adminUrl)
    nobody.username = 'no_such_role'
    await fails(nobody.href, 'NO_RIGHTS', /no_such_role/)
  })

  test('a server without TLS is refused before a password leaves', async () => {
    const url = new URL((await postgres()).adminUrl)
    url.searchParams.set('sslmode', 'verify-full')
    url.password = 'geheim'
    await fails(url.href, 'NO_RIGHTS', /SSL/)
  })

  test('an abort ends the wait for a server that never answers', async () => {
    const silent = await mute()
    const stop = new AbortController()
    const reason = new Error('enough')
    const connecting = connect(parse({ url: `postgres://u@127.0.0.1:${silent.port}/d` }), { name: 'test' }, stop.signal)
    const [socket] = (await once(silent.server, 'connection')) as [Socket]
    stop.abort(reason)
    await assert.rejects(connecting, reason)
    if (!socket.closed) await once(socket, 'close')
    silent.server.close()
  })

  test('replication runs under the same settings', async () => {
    const config = parse({ url: await (await postgres()).database('config') })
    const client = await connect(config, { name: 'test', replication: true }, signal)
    const { rows } = await client.query<{ TimeZone: string }>('show TimeZone')
    assert.deepEqual(rows, [{ TimeZone: 'UTC' }])
    const { rows: system } = await client.query<{ dbname: string }>('IDENTIFY_SYSTEM')
    assert.equal(system[0]?.dbname, config.database)
    await client.end()
    const other = new pg.Client({
      ...replicationOptions(config, 'stream', 'shop'),
      replication: 'database',
    } as pg.ClientConfig)
    await other.connect()
    const { rows: named } = await other.query<{ application_name: string }>('show application_name')
    assert.deepEqual(named, [{ application_name: 'crossfade shop stream' }])
    await other.end()
  })

  test('pinned settings win over those of role and database', async () => {
    const config = parse({ url: await (await postgres()).database('config') })
    const before = await connect(config, { name: 'test' }, signal)
    await before.query(`alter database ${JSON.stringify(config.database)} set timezone = 'Asia/Tokyo'`)
    await before.query(`alter database ${JSON.stringify(config.database)} set statement_timeout = '1s'`)
    await before.query(`alter database ${JSON.stringify(config.database)} set transaction_timeout = '1s'`)
    await before.query(`alter database ${JSON.stringify(config.database)} set default_transaction_read_only = on`)
    await before.end()
    const client = await connect(config, { name: 'test', lockTimeoutMs: 1500 }, signal)
    const { rows } = await client.query<{ name: string; setting: string }>(
      `select name, setting from pg_settings where name in ('TimeZone', 'statement_timeout', 'transaction_timeout', 'default_transaction_read_only', 'lock_timeout', 'client_encoding')`,
    )
    assert.deepEqual(Object.fromEntries(rows.map((row) => [row.name, row.setting])), {
      TimeZone: 'UTC',
      client_encoding: 'UTF8',
      default_transaction_read_only: 'off',
      lock_timeout: '1500',
      statement_timeout: '0',
      transaction_timeout: '0',
    })
    await client.end()
  })

  async function fails(url: string, code: ErrorCode, message: RegExp): Promise<void> {
    await assert.rejects(connect(parse({ url }), { name: 'test' }, signal), (error) => {
      assert.ok(error instanceof Failure)
      assert.doesNotMatch(error.message, /geheim/)
      return error.code === code && message.test(error.message)
    })
  }
})

/** A server that takes connections and says nothing. */
async function mute(): Promise<{ server: Server; port: number }> {
  const server = createServer((socket) => void socket.resume().on('error', () => {}))
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  return { server, port: address !== null && typeof address === 'object' ? address.port : 0 }
}
