import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { authority, inOneLine, noCertificates } from '../support/certificates.ts'
import { startKafka, type KafkaCluster } from '../support/kafka.ts'
import { sql, startPostgres, type PostgresServer } from '../support/postgres.ts'
import { assertRefusal, createThings, scene, secret, untilEqual } from '../support/scene.ts'
import { needs } from '../support/servers.ts'

const skip = noCertificates || needs('pg', 'kafka').skip

describe('servers that want TLS and a login', { skip }, () => {
  it('a pipeline runs over TLS alone, verified, with SCRAM at Kafka; who proves nothing is refused', async () => {
    const [ours, theirs] = [authority(), authority()]
    await using stack = new AsyncDisposableStack()
    const [server, cluster] = await Promise.all([securePostgres(ours), secureKafka(ours)])
    stack.use(server)
    stack.use(cluster)
    const [source, target] = [await server.createDatabase('source'), await server.createDatabase('target')]
    await createThings(source)
    await sql(source, `create user app password '${secret}' superuser`)
    const login = 'sasl: { mechanism: scram-sha-512, username: app, password: "${env:KAFKA_PASSWORD}" }'
    const kafka = `brokers: ["${cluster.brokers[0]}"], partitions: 1, replication: 1, ssl: { ca: "\${env:CA}" }, ${login}`
    const pipeline = stack.use(await scene({ source, target, mode: 'hybrid', log: `{ type: kafka, ${kafka} }` }))
    const verified = (url: string, ca: string): string => {
      const address = Object.assign(new URL(url), { username: 'app', password: secret })
      return `${address.href}?sslmode=verify-full&sslrootcert=${ca}`
    }
    const env = {
      SOURCE_URL: verified(source, ours.ca),
      TARGET_URL: verified(target, ours.ca),
      KAFKA_PASSWORD: secret,
      CA: readFileSync(ours.ca, 'utf8'),
    }
    const refused = async (more: NodeJS.ProcessEnv, code: string): Promise<void> =>
      assertRefusal(await pipeline.refused({ ...env, ...more }), code, 5)
    await refused({ SOURCE_URL: verified(source, theirs.ca) }, 'NO_RIGHTS')
    await refused({ CA: readFileSync(theirs.ca, 'utf8') }, 'NO_RIGHTS')
    await refused({ KAFKA_PASSWORD: 'wrong' }, 'NO_RIGHTS')

    const worker = pipeline.run([], env)
    await untilEqual(pipeline, worker)
    await sql(source, `update thing set name = 'changed' where id < 10; delete from thing where id > 990`)
    await untilEqual(pipeline, worker)
    const sessions = await sql(
      server.adminUrl,
      `select backend_type, ssl, version, count(*)::int as n from pg_stat_ssl join pg_stat_activity using (pid)
       where application_name like 'crossfade %' group by 1, 2, 3 order by 1`,
    )
    assert.deepEqual(
      sessions.map(({ backend_type: type, ssl, version }) => [type, ssl, version]),
      [
        ['client backend', true, 'TLSv1.3'],
        ['walsender', true, 'TLSv1.3'],
      ],
    )
    assert.equal((await worker.stop()).code, 0)
  })
})

/** Takes nobody without TLS and a password, but its superuser, who is the test. */
async function securePostgres(ours: ReturnType<typeof authority>): Promise<PostgresServer> {
  const { cert, key } = ours.certificate()
  const server = await startPostgres({ settings: { ssl: 'on', ssl_cert_file: cert, ssl_key_file: key } })
  const rules = ['host all postgres 127.0.0.1/32 trust', 'hostssl all app 127.0.0.1/32 scram-sha-256', '']
  writeFileSync(join(server.dataDir, 'pg_hba.conf'), rules.join('\n'))
  await sql(server.adminUrl, 'select pg_reload_conf()')
  return server
}

async function secureKafka(ours: ReturnType<typeof authority>): Promise<KafkaCluster> {
  const { cert, key } = ours.certificate()
  const listener = 'listener.name.plaintext'
  return await startKafka({
    users: { app: secret },
    settings: {
      'listener.security.protocol.map': 'PLAINTEXT:SASL_SSL,CONTROLLER:PLAINTEXT',
      'sasl.mechanism.inter.broker.protocol': 'SCRAM-SHA-512',
      [`${listener}.sasl.enabled.mechanisms`]: 'SCRAM-SHA-512',
      [`${listener}.scram-sha-512.sasl.jaas.config`]:
        'org.apache.kafka.common.security.scram.ScramLoginModule required;',
      [`${listener}.ssl.keystore.type`]: 'PEM',
      [`${listener}.ssl.keystore.key`]: inOneLine(key),
      [`${listener}.ssl.keystore.certificate.chain`]: inOneLine(cert),
      [`${listener}.ssl.truststore.type`]: 'PEM',
      [`${listener}.ssl.truststore.certificates`]: inOneLine(ours.ca),
    },
  })
}
