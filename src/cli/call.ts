import { loadConfig, type LoadedConfig } from '../config/load-config.ts'
import type { Logger } from '../logger.ts'
import type { Host } from './commands.ts'
import type { Screen } from './live.ts'

/** What every command works with. `signal` aborts when it is over. */
export type Call = {
  readonly host: Host
  readonly file: string
  readonly json: boolean
  readonly signal: AbortSignal
  /** Set once the configuration is known. */
  mask: (text: string) => string
  locate: (key: string) => string | undefined
  /** 1 says something of its own: a failure that would end with it ends with 3, as what it was to find out is not known. */
  findsOut: boolean
}

const widest = 120
export const widthOf = ({ isTTY, columns }: Screen): number => (isTTY ? Math.min(widest, Math.max(40, columns)) : 80)

export async function load(call: Call): Promise<LoadedConfig> {
  const { host, file } = call
  const loaded = await loadConfig(file, host.env, { connectors: host.connectors, from: host.cwd })
  call.mask = loaded.mask
  call.locate = loaded.locate
  if (!call.json) {
    for (const { object = '', observed = '', next = '' } of loaded.warnings)
      host.err.write(`${host.err.paint('yellow', '▲')} ${object}: ${observed}. ${next}\n`)
  }
  return loaded
}

export const quietly = (call: Call): Logger => call.host.logger({ level: 'warn', mask: call.mask })
