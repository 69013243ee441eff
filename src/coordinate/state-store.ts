import { Failure } from '../errors.ts'

/** Small shared state: leases, tasks, plans of copies, routing by position, journal. JSON values; every write is a compare-and-set, durable when it
 *  resolves. A key's revisions rise for as long as it is there. */
export interface StateStore extends AsyncDisposable {
  get(key: string, signal: AbortSignal): Promise<Stored | undefined>
  list(prefix: string, signal: AbortSignal): Promise<readonly (Stored & { readonly key: string })[]>
  /** Writes iff the revision is `expected` (0: absent); returns the new one, undefined if it lost. A lost answer is settled by `get`. */
  put(key: string, value: unknown, expected: number, signal: AbortSignal): Promise<number | undefined>
  /** Writes all of these different keys, or none if one would lose: then false. */
  putAll(writes: readonly Write[], signal: AbortSignal): Promise<boolean>
  /** Removes every key that begins so. Only for keys that nobody who counts will write or read again. */
  remove(prefix: string, signal: AbortSignal): Promise<void>
}
/** A `put` by the only one who may write: FENCED if it lost, as somebody else goes by what he wrote then. Resolves to the new revision. */
export async function putAlone(
  store: StateStore,
  key: string,
  value: unknown,
  expected: number,
  signal: AbortSignal,
): Promise<number> {
  const revision = await store.put(key, value, expected, signal)
  if (revision === undefined) throw new Failure('FENCED', { object: key, observed: 'another worker wrote it' })
  return revision
}
/** One write of several: as `put` takes it. */
export type Write = { readonly key: string; readonly value: unknown; readonly expected: number }
export type Stored = { readonly value: unknown; readonly revision: number }

/** For one process, and for tests of what stands on the seam. Values are kept as text, so nobody shares an object. */
export function memoryStore(): StateStore {
  const entries = new Map<string, { readonly text: string; readonly revision: number }>()
  return {
    get: async (key, signal) => {
      signal.throwIfAborted()
      const entry = entries.get(key)
      return entry && { value: JSON.parse(entry.text) as unknown, revision: entry.revision }
    },
    list: async (prefix, signal) => {
      signal.throwIfAborted()
      return [...entries]
        .filter(([key]) => key.startsWith(prefix))
        .sort(([a], [b]) => (a < b ? -1 : 1))
        .map(([key, { text, revision }]) => ({ key, value: JSON.parse(text) as unknown, revision }))
    },
    put: async (key, value, expected, signal) => {
      signal.throwIfAborted()
      if ((entries.get(key)?.revision ?? 0) !== expected) return undefined
      entries.set(key, { text: JSON.stringify(value), revision: expected + 1 })
      return expected + 1
    },
    putAll: async (writes, signal) => {
      signal.throwIfAborted()
      if (writes.some(({ key, expected }) => (entries.get(key)?.revision ?? 0) !== expected)) return false
      for (const { key, value, expected } of writes)
        entries.set(key, { text: JSON.stringify(value), revision: expected + 1 })
      return true
    },
    remove: async (prefix, signal) => {
      signal.throwIfAborted()
      for (const key of entries.keys()) if (key.startsWith(prefix)) entries.delete(key)
    },
    [Symbol.asyncDispose]: async () => {},
  }
}
