import type { Connector } from '../../src/connector.ts'
import { parse, type PostgresConfig } from './config.ts'
import { openSink } from './sink.ts'
import { openSource } from './source.ts'
import { openStore } from './store.ts'

export const connector: Connector<PostgresConfig> = {
  name: 'postgres',
  parse,
  openSource: (config, context, state, signal) => openSource(config, context, state, signal),
  openSink,
  openStore,
}
