import type { Client } from 'pg'
import type { Context } from '../../src/connector.ts'
import type { StateStore } from '../../src/coordinate/state-store.ts'
import { Failure } from '../../src/errors.ts'
import { address, connect, type PostgresConfig } from './config.ts'
import { controlConnection } from './control.ts'
import { orNone, sqlState } from './errors.ts'
import { failpoint } from '../../src/failpoint.ts'
import { ident } from './queries.ts'
import {
  deleteStates,
  insertState,
  migrate,
  selectState,
  selectStates,
  updateState,
  writeStates,
} from './sink-queries.ts'

/** Small shared state in schema crossfade, under the pipeline's name. The schema is made by the first write: reading changes nothing. */
export async function openStore(
  config: PostgresConfig,
  { pipeline }: Context,
  signal: AbortSignal,
): Promise<StateStore> {
  const control = controlConnection((given) => connect(config, { name: 'state', pipeline }, given))
  await control.use(signal, async () => {})
  let migrated = false
  const ready = async (client: Client): Promise<void> => {
    if (!migrated) await migrate(client).catch((error: unknown) => refused(error, config))
    migrated = true
  }
  return {
    get: async (key, given) =>
      await control.use(given, async (client) => {
        const row = await orNone(async () => await selectState(client, pipeline, key))
        return row && { value: row.value, revision: row.revision }
      }),
    list: async (prefix, given) =>
      await control.use(
        given,
        async (client) => (await orNone(async () => await selectStates(client, pipeline, prefix))) ?? [],
      ),
    put: async (key, value, expected, given) =>
      await control.use(given, async (client) => {
        await ready(client)
        const json = JSON.stringify(value)
        failpoint('store.before-write')
        const revision =
          expected === 0
            ? await insertState(client, pipeline, key, json)
            : await updateState(client, pipeline, key, json, expected)
        failpoint('store.after-write')
        return revision
      }),
    putAll: async (writes, given) =>
      await control.use(given, async (client) => {
        await ready(client)
        const all = writes.map(({ key, value, expected }) => ({ key, json: JSON.stringify(value), expected }))
        try {
          failpoint('store.before-write')
          await writeStates(client, pipeline, all)
          failpoint('store.after-write')
          return true
        } catch (error) {
          if (sqlState(error) === '22012') return false
          throw error
        }
      }),
    remove: async (prefix, given) =>
      await control.use(
        given,
        async (client) => await orNone(async () => await deleteStates(client, pipeline, prefix)),
      ),
    [Symbol.asyncDispose]: async () => await control.close(),
  }
}

function refused(error: unknown, config: PostgresConfig): never {
  if (sqlState(error) !== '42501') throw error
  throw new Failure('NO_RIGHTS', {
    object: `schema crossfade at ${address(config)}`,
    observed: error instanceof Error ? error.message : String(error),
    needed: `${config.user} may create it, or owns it`,
    effect: 'nothing was started',
    next: `GRANT CREATE ON DATABASE ${ident(config.database)} TO ${ident(config.user)}; -- or, where the schema is there: GRANT ALL ON SCHEMA crossfade TO ${ident(config.user)};`,
    cause: error,
  })
}
