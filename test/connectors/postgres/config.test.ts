import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { inspect } from 'node:util'
import { address, clientConfig, parse, type PostgresConfig } from '../../../connectors/postgres/config.ts'
import { Failure } from '../../../src/errors.ts'

const here = import.meta.filename

describe('parse', () => {
  test('takes an address apart', () => {
    const config = parse({ url: 'postgres://us%40er:p%3Aw@db.example.com:5433/a%2Fb?sslmode=verify-full' })
    assert.deepEqual(
      { ...config },
      {
        host: 'db.example.com',
        port: 5433,
        user: 'us@er',
        database: 'a/b',
        tls: { ca: undefined, cert: undefined, key: undefined, verify: true },
      },
    )
    assert.equal(config.password, 'p:w')
    assert.equal(address(parse({ url: 'postgresql://u@[::1]/' })), '[::1]:5432/u')
  })

  test('never prints the password', () => {
    const config = parse({ url: 'postgres://u:geheim@127.0.0.1/d' })
    for (const text of [JSON.stringify(config), inspect(config)]) assert.doesNotMatch(text, /geheim/)
  })

  const tls: readonly (readonly [string, object, PostgresConfig['tls'] | 'refused'])[] = [
    ['postgres://u@127.0.0.1/d', {}, undefined],
    ['postgres://u@localhost/d', {}, undefined],
    ['postgres://u@127.0.0.1/d?sslmode=verify-full', {}, verified()],
    ['postgres://u@db/d', {}, verified()],
    ['postgres://u@db/d', { ca: here }, verified(here)],
    [`postgres://u@db/d?sslrootcert=${here}`, {}, verified(here)],
    ['postgres://u@db/d?sslmode=disable', {}, 'refused'],
    ['postgres://u@db/d?sslmode=disable', { allowInsecure: 'db' }, undefined],
    ['postgres://u@db/d?sslmode=disable', { allowInsecure: 'other' }, 'refused'],
    ['postgres://u@db/d?sslmode=prefer', {}, 'refused'],
    ['postgres://u@db/d?sslmode=require', {}, 'refused'],
    ['postgres://u@db/d?sslmode=no-verify', {}, 'refused'],
    ['postgres://u@db/d?sslmode=require', { allowInsecure: 'db' }, { ...verified(), verify: false }],
    ['postgres://u@db/d?sslmode=perhaps', {}, 'refused'],
    ['postgres://u@db/d', { cert: here }, 'refused'],
    ['postgres://u@db/d', { ca: '/no/such/file' }, 'refused'],
  ]
  for (const [url, options, expected] of tls) {
    test(`${url} with tls ${JSON.stringify(options)}`, () => {
      if (expected === 'refused') assert.throws(() => parse({ url, tls: options }), isInvalid)
      else assert.deepEqual(parse({ url, tls: options }).tls, expected)
    })
  }

  test('lists what is missing, of another kind or mistyped in words, and which keys there are', () => {
    const causes = (raw: unknown): unknown => {
      try {
        return parse(raw)
      } catch (error) {
        assert.ok(isInvalid(error))
        return error.facts.cause
      }
    }
    const needed = 'postgres://user@host:5432/database'
    assert.deepEqual(causes({ uri: 'postgres://u@127.0.0.1/d' }), [
      { path: ['url'], message: 'missing', needed },
      { path: ['uri'], message: 'unknown key', known: ['url', 'tls'] },
    ])
    assert.deepEqual(causes({ url: '', tls: { cas: 'x' } }), [
      { path: ['url'], message: 'must not be empty', needed },
      { path: ['tls', 'cas'], message: 'unknown key', known: ['ca', 'cert', 'key', 'allowInsecure'] },
    ])
    assert.deepEqual(causes({ url: 'postgres://u@127.0.0.1/d', tls: 'yes' }), [
      { path: ['tls'], message: 'has to be a mapping of keys to values' },
    ])
  })

  test('names every bad key', () => {
    assert.throws(
      () => parse({ url: 5, tls: { kay: 'x' }, host: 'y' }),
      (error) => isInvalid(error) && /url: .*\n.*tls\.kay: unknown key\nhost: unknown key/.test(error.message),
    )
    for (const raw of [
      undefined,
      null,
      'postgres://u@h/d',
      {},
      { url: '' },
      { url: 'mysql://u@h/d' },
      { url: 'postgres://h/d' },
      { url: 'postgres://u@127.0.0.1/d?options=-csearch_path=x' },
    ])
      assert.throws(() => parse(raw), isInvalid)
  })
})

test('a session is named, within what the server keeps', () => {
  const config = parse({ url: 'postgres://u@127.0.0.1/d' })
  assert.equal(clientConfig(config, { name: 'lane', pipeline: 'shop' }).application_name, 'crossfade shop lane')
  const long = clientConfig(config, { name: 'ü'.repeat(60) }).application_name ?? ''
  assert.ok(Buffer.byteLength(long) <= 63 && /^crossfade ü+$/.test(long))
})

function verified(ca?: string): { ca: string | undefined; cert: undefined; key: undefined; verify: true } {
  return { ca, cert: undefined, key: undefined, verify: true }
}
function isInvalid(error: unknown): error is Failure {
  return error instanceof Failure && error.code === 'CONFIG_INVALID'
}
