import assert from 'node:assert/strict'
import { test } from 'node:test'
import { openKafkaLog } from '../../../src/change-log/kafka-log.ts'
import { Failure } from '../../../src/errors.ts'
import { silent } from '../../../src/logger.ts'
import { batchOf, readAll } from '../../conformance/change-log.ts'
import { startKafka } from '../../support/kafka.ts'
import { needs } from '../../support/servers.ts'

const never = new AbortController().signal
const users = 'username="admin" password="inner" user_admin="inner" user_app="right"'

test('logs in with a password; a wrong one is NO_RIGHTS at once', { skip: needs('kafka').skip }, async () => {
  await using cluster = await startKafka({
    settings: {
      'listener.security.protocol.map': 'PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT',
      'sasl.mechanism.inter.broker.protocol': 'PLAIN',
      'listener.name.plaintext.sasl.enabled.mechanisms': 'PLAIN',
      'listener.name.plaintext.plain.sasl.jaas.config': `org.apache.kafka.common.security.plain.PlainLoginModule required ${users};`,
    },
  })
  const options = { brokers: cluster.brokers, clientId: 'test', replication: 1 }
  const login = { mechanism: 'plain', username: 'app', password: 'right' } as const
  await using log = await openKafkaLog({ ...options, sasl: login }, silent, never)
  await log.open([{ name: 't', partitions: 1, cleanup: 'delete' }], never)
  const at = { topic: 't', partition: 0 }
  await log.append([batchOf(at, ['a'])], never)
  assert.deepEqual(await readAll(log, at), ['a'])

  const began = performance.now()
  await assert.rejects(
    openKafkaLog({ ...options, sasl: { ...login, password: 'wrong' } }, silent, never),
    (error) => error instanceof Failure && error.code === 'NO_RIGHTS' && !error.message.includes('wrong'),
  )
  assert.ok(performance.now() - began < 5_000)
})
