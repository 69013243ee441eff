import type { Connector } from '../src/connector.ts'

/** The kinds of database there are, by the `type` of a configuration; each is loaded when it is asked for. */
export const connectors: Readonly<Record<string, () => Promise<Connector>>> = {
  postgres: async () => (await import('./postgres/index.ts')).connector,
}
