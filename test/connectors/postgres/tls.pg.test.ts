import assert from 'node:assert/strict'
import { test } from 'node:test'
import { close, connect, parse } from '../../../connectors/postgres/config.ts'
import { Failure } from '../../../src/errors.ts'
import { authority, noCertificates } from '../../support/certificates.ts'
import { startPostgres } from '../../support/postgres.ts'
import { needs } from '../../support/servers.ts'

const never = new AbortController().signal
const skip = noCertificates || needs('pg').skip

test('TLS to a server: its authority and its name are proved, or nothing is sent', { skip }, async () => {
  const [ours, theirs] = [authority(), authority()]
  const right = ours.certificate()
  const named = ours.certificate('DNS:db.example.com')
  const settings = { ssl: 'on', ssl_cert_file: right.cert, ssl_key_file: right.key }
  await using server = await startPostgres({ settings })
  const url = server.url('postgres')
  /** Whether the session is encrypted; or the code it was refused with. */
  const tried = async (parameters: string, tls?: object): Promise<unknown> => {
    try {
      const config = parse({ url: `${url}${parameters}`, ...(tls && { tls }) })
      const client = await connect(config, { name: 'test' }, never)
      const { rows } = await client.query('select ssl from pg_stat_ssl where pid = pg_backend_pid()')
      await close(client)
      return rows[0]?.ssl
    } catch (error) {
      return error instanceof Failure ? error.code : error
    }
  }
  assert.equal(await tried(`?sslmode=verify-full&sslrootcert=${ours.ca}`), true)
  assert.equal(await tried('', { ca: ours.ca }), true, 'a CA on this machine asks for TLS')
  assert.equal(await tried('', { ca: ours.ca, ...ours.certificate() }), true, 'with a certificate of our own')
  assert.equal(await tried(''), false, 'plain on this machine')
  assert.equal(await tried(`?sslmode=verify-full&sslrootcert=${theirs.ca}`), 'NO_RIGHTS')
  assert.equal(await tried('?sslmode=verify-full'), 'NO_RIGHTS', 'no public authority knows it')
  for (const mode of ['require', 'verify-ca', 'prefer', 'allow', 'no-verify']) {
    assert.equal(await tried(`?sslmode=${mode}`), 'CONFIG_INVALID', mode)
  }
  assert.equal(await tried('?sslmode=require', { allowInsecure: '127.0.0.1' }), true)

  await server.restart({ ssl_cert_file: named.cert, ssl_key_file: named.key })
  assert.equal(await tried(`?sslmode=verify-full&sslrootcert=${ours.ca}`), 'NO_RIGHTS', 'the name of another server')
  assert.equal(await tried('?sslmode=verify-ca', { ca: ours.ca, allowInsecure: '127.0.0.1' }), true)

  await server.restart({ ssl: 'off' })
  assert.equal(await tried(`?sslmode=verify-full&sslrootcert=${ours.ca}`), 'NO_RIGHTS', 'a server without TLS')
})
