import assert from 'node:assert/strict'
import { test } from 'node:test'
import { dialer, kafkaOf } from '../../../src/change-log/kafka-client.ts'
import { metadataAnswer, offsetsAnswer, produceAnswer } from '../../../src/change-log/kafka-protocol.ts'
import { Failure } from '../../../src/errors.ts'

const address = { brokers: ['127.0.0.1:1'], clientId: 'test' }

test('the library’s inside is the one known', () => {
  assert.equal(typeof dialer(address), 'function')
})

test('a broker that does not answer is named', async () => {
  await assert.rejects(
    dialer(address)('127.0.0.1', 1),
    (error) => error instanceof Failure && error.code === 'SERVER_UNREACHABLE' && /127\.0\.0\.1:1/.test(error.message),
  )
})

test('the ways to log in and TLS reach the library', () => {
  for (const mechanism of ['plain', 'scram-sha-256', 'scram-sha-512'] as const)
    kafkaOf({ ...address, ssl: { ca: 'pem' }, sasl: { mechanism, username: 'u', password: 'p' } })
})

test('malformed answers end in an error, not beyond the bytes', () => {
  for (const bytes of [Buffer.alloc(0), Buffer.alloc(3), Buffer.alloc(40, 0xff), Buffer.alloc(40, 0x7f)]) {
    for (const read of [metadataAnswer, offsetsAnswer, produceAnswer]) {
      try {
        read(bytes)
      } catch (error) {
        assert.ok(error instanceof RangeError, String(error))
      }
    }
  }
})
