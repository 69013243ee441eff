import { isDeepStrictEqual } from 'node:util'
import type { PipelineConfig } from './config/pipeline-config.ts'
import type { Finding, Sink } from './connector.ts'
import { putAlone, type StateStore } from './coordinate/state-store.ts'
import { tableName, type TableSchema } from './model.ts'
import { registeredTables } from './registry.ts'

/** What a pipeline that has begun began with: from then on it is no longer the configuration's to say. */
export type Begun = { readonly tables: number; readonly startAt?: string | undefined }

const key = 'begun'

export async function readBegun(store: StateStore, signal: AbortSignal): Promise<Begun | undefined> {
  return (await store.get(key, signal))?.value as Begun | undefined
}

export async function writeBegun(store: StateStore, begun: Begun, signal: AbortSignal): Promise<void> {
  await putAlone(store, key, begun, 0, signal)
}

/** What the configuration now asks of a begun pipeline and cannot have: another place to start at, and in mode `incremental` tables whose rows at the
 *  target nobody vouches for. `found`: the tables it names now. */
export async function checkBegun(
  { mode, startAt }: PipelineConfig,
  begun: Begun,
  { store, sink }: { readonly store: StateStore; readonly sink: Sink },
  found: readonly TableSchema[],
  signal: AbortSignal,
): Promise<readonly Finding[]> {
  const findings: Finding[] = []
  if (startAt !== undefined && startAt !== begun.startAt)
    findings.push({
      id: 'startAt',
      level: 'blocker',
      observed: `startAt: ${startAt}, but this pipeline has begun at ${begun.startAt ?? 'the place of its own slot'} and goes on from where it is`,
      needed: begun.startAt === undefined ? 'no startAt' : `startAt: ${begun.startAt}, or none`,
      remedy: `Take startAt out of the file to go on from where it is; for a target that holds the data as of ${startAt}, begin a pipeline of another name`,
    })
  if (mode !== 'incremental') return findings
  const known = new Set((await registeredTables(store, signal)).map(({ schema }) => tableName(schema.table)))
  const copies = await sink.copies(signal)
  const followed = new Set(copies.filter(({ live }) => live).map(({ table }) => tableName(table)))
  const added = found.map(({ table }) => tableName(table)).filter((name) => !known.has(name) || !followed.has(name))
  if (added.length > 0) {
    const one = added.length === 1
    findings.push({
      id: 'tables.added',
      level: 'blocker',
      observed: `${listed(added)} ${one ? 'is' : 'are'} not followed so far (new, left out since, or not copied to the end): what was written there until now is not in the log, and mode incremental copies nothing`,
      needed: 'in mode incremental, only tables followed since the pipeline began',
      remedy: [
        `mode: hybrid # without startAt: copies ${one ? 'it' : 'them'} and follows the others from where they are; ${one ? 'it has' : 'they have'} to be empty at the target`,
        `Or go on without: name ${one ? 'it' : 'them'} under tables.exclude`,
      ].join('\n'),
    })
  }
  return findings
}

/** Tables that are no longer as the pipeline first recorded them: the target stands at any of their versions, or the source is already further. */
export function changedSince(versions: readonly TableSchema[], now: readonly TableSchema[]): ReadonlySet<string> {
  const known = Map.groupBy(versions, ({ table }) => tableName(table))
  const changed = now.filter((schema) => {
    const [first, second] = known.get(tableName(schema.table)) ?? []
    return first !== undefined && (second !== undefined || !isDeepStrictEqual(first, schema))
  })
  return new Set(changed.map(({ table }) => tableName(table)))
}

function listed(names: readonly string[]): string {
  const [shown, rest] = [names.slice(0, 10).join(', '), names.length - 10]
  return rest > 0 ? `${shown} and ${rest} more` : shown
}
