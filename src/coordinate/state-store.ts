/** Small shared state: leases, tasks, plans of copies, routing by position, journal. JSON values; every write is a compare-and-set. */
export interface StateStore extends AsyncDisposable {
  get(key: string, signal: AbortSignal): Promise<Stored | undefined>
  list(prefix: string, signal: AbortSignal): Promise<readonly (Stored & { readonly key: string })[]>
  /** Writes iff the revision is `expected` (0: absent); returns the new one, undefined if it lost. A lost answer is settled by `get`. */
  put(key: string, value: unknown, expected: number, signal: AbortSignal): Promise<number | undefined>
}
export type Stored = { readonly value: unknown; readonly revision: number }
