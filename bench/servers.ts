import { startKafka, type KafkaCluster } from '../test/support/kafka.ts'
import { startPostgres, type PostgresServer } from '../test/support/postgres.ts'

/** Both servers alike, durable as in production. No autovacuum, which would fall into the time of one side or the other. */
export const settings: Readonly<Record<string, string | number>> = {
  fsync: 'on',
  full_page_writes: 'on',
  synchronous_commit: 'on',
  shared_buffers: '512MB',
  max_wal_size: '8GB',
  checkpoint_timeout: '30min',
  autovacuum: 'off',
  // Each connection that writes names an origin of its own; those of one run add up.
  max_active_replication_origins: 200,
}

export interface Servers extends AsyncDisposable {
  readonly source: PostgresServer
  readonly target: PostgresServer
  readonly kafka: KafkaCluster
}

export async function startServers(): Promise<Servers> {
  const [source, target, kafka] = await Promise.all([
    startPostgres({ settings }),
    startPostgres({ settings }),
    startKafka(),
  ])
  return {
    source,
    target,
    kafka,
    async [Symbol.asyncDispose]() {
      await Promise.all([source, target, kafka].map(async (server) => await server[Symbol.asyncDispose]()))
    },
  }
}
