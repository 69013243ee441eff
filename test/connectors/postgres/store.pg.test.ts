import { silent } from '../../../src/logger.ts'
import { parse } from '../../../connectors/postgres/config.ts'
import { openStore } from '../../../connectors/postgres/store.ts'
import { stateStoreConformance } from '../../conformance/state-store.ts'
import { needs, postgres } from '../../support/servers.ts'

let url: Promise<string> | undefined
stateStoreConformance(
  'PostgreSQL',
  async () => {
    url ??= postgres(18).then(async (server) => await server.database('store'))
    const context = { pipeline: 'p', dir: '/nowhere', log: silent }
    return await openStore(parse({ url: await url }), context, new AbortController().signal)
  },
  needs('pg').skip,
)
