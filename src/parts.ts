import { join } from 'node:path'
import { openEmbeddedLog } from './change-log/embedded-log.ts'
import { openKafkaLog } from './change-log/kafka-log.ts'
import type { ChangeLog } from './change-log/change-log.ts'
import type { PipelineConfig } from './config/pipeline-config.ts'
import { tableFilter } from './config/table-pattern.ts'
import type { Connector, Context, Sink, Source, TableFilter } from './connector.ts'
import type { StateStore } from './coordinate/state-store.ts'
import { Failure } from './errors.ts'
import type { Logger } from './logger.ts'

/** Finds a connector by the `type` of the configuration; CONFIG_INVALID for an unknown one. */
export type Connectors = (type: string) => Promise<Connector>

/** Opens what one pipeline is made of. Each task opens its own: what broke is disposed of and opened anew, never mended. */
export type Parts = {
  readonly config: PipelineConfig
  readonly log: Logger
  readonly filter: TableFilter
  store(signal: AbortSignal): Promise<StateStore>
  source(store: StateStore, signal: AbortSignal): Promise<Source>
  sink(signal: AbortSignal): Promise<Sink>
  changeLog(signal: AbortSignal): Promise<ChangeLog>
}

export async function partsOf(config: PipelineConfig, connectors: Connectors, log: Logger): Promise<Parts> {
  const context: Context = { pipeline: config.name, dir: join(config.dir, config.name), log }
  const side = async (key: 'source' | 'target' | 'state'): Promise<{ connector: Connector; options: unknown }> => {
    const { type, ...raw } = config[key] ?? config.target
    const connector = await connectors(type)
    return { connector, options: connector.parse(raw) }
  }
  const [from, to, state] = await Promise.all([side('source'), side('target'), side('state')])
  const lacks = (what: string, { name }: Connector): Failure =>
    new Failure('UNSUPPORTED', { object: name, observed: `cannot be a ${what}`, next: `Choose another ${what}` })
  return {
    config,
    log,
    filter: tableFilter(config.tables.include, config.tables.exclude),
    async store(signal) {
      if (state.connector.openStore === undefined) throw lacks('state store', state.connector)
      return await state.connector.openStore(state.options, context, signal)
    },
    async source(store, signal) {
      if (from.connector.openSource === undefined) throw lacks('source', from.connector)
      return await from.connector.openSource(from.options, context, store, signal)
    },
    async sink(signal) {
      if (to.connector.openSink === undefined) throw lacks('target', to.connector)
      return await to.connector.openSink(to.options, context, signal)
    },
    async changeLog(signal) {
      if (config.log.type === 'embedded') return await openEmbeddedLog(join(config.log.dir, config.name), signal)
      return await openKafkaLog({ ...config.log, clientId: `crossfade-${config.name}` }, log, signal)
    },
  }
}
