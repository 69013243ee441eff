import type { StateStore } from '../../../src/coordinate/state-store.ts'
import { silent } from '../../../src/logger.ts'
import { parse } from '../../../connectors/postgres/config.ts'
import { openStore } from '../../../connectors/postgres/store.ts'
import { leaseConformance } from '../../conformance/lease.ts'
import { stateStoreConformance } from '../../conformance/state-store.ts'
import { needs, postgres } from '../../support/servers.ts'

let url: Promise<string> | undefined
async function open(): Promise<StateStore> {
  url ??= postgres(18).then(async (server) => await server.database('store'))
  const context = { pipeline: 'p', dir: '/nowhere', log: silent }
  return await openStore(parse({ url: await url }), context, new AbortController().signal)
}

stateStoreConformance('PostgreSQL', open, needs('pg').skip)
leaseConformance('PostgreSQL', open, needs('pg').skip)
