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
  const context: Context = { pipeline: config.name, dir: join(config.dir, config.name), log, ddl: config.ddl }
  const side = async (key: 'source' | 'target' | 'state'): Promise<{ connector: Connector; options: unknown }> => {
    const { type, ...raw } = config[key] ?? config.target
    const connector = await connectors(type)
    return { connector, options: connector.parse(raw) }
  }
  const [from, to, state] = await Promise.all([side('source'), side('target'), side('state')])
  const lacks = (what: string, { name }: Connector): Failure =>
    new Failure('UNSUPPORTED', { object: name, observed: `cannot be a ${what}`, next: `Choose another ${what}` })
  /** What fails while it is opened is told with the key of the configuration that named it. */
  const opened = async <T>(key: keyof PipelineConfig, open: () => Promise<T>): Promise<T> => {
    try {
      return await open()
    } catch (error) {
      if (!(error instanceof Failure)) throw error
      const { code, facts } = error
      throw new Failure(code, { ...facts, key })
    }
  }
  return {
    config,
    log,
    filter: tableFilter(config.tables.include, config.tables.exclude),
    async store(signal) {
      const openStore = state.connector.openStore?.bind(state.connector)
      if (openStore === undefined) throw lacks('state store', state.connector)
      return await opened(
        config.state ? 'state' : 'target',
        async () => await openStore(state.options, context, signal),
      )
    },
    async source(store, signal) {
      const openSource = from.connector.openSource?.bind(from.connector)
      if (openSource === undefined) throw lacks('source', from.connector)
      return await opened('source', async () => await openSource(from.options, context, store, signal))
    },
    async sink(signal) {
      const openSink = to.connector.openSink?.bind(to.connector)
      if (openSink === undefined) throw lacks('target', to.connector)
      return await opened('target', async () => await openSink(to.options, context, signal))
    },
    async changeLog(signal) {
      const { log: options } = config
      return await opened('log', async () =>
        options.type === 'embedded'
          ? await openEmbeddedLog(join(options.dir, config.name), signal)
          : await openKafkaLog({ ...options, clientId: `crossfade-${config.name}` }, log, signal),
      )
    },
  }
}
