/** What a person sees of a table; derived from what is stored, never stored itself. */
export type TableState = 'waiting' | 'catching up' | 'copying' | 'copied' | 'live' | 'stopped'
export type Facts = {
  /** Its pipeline ended with an error. */
  readonly stopped: boolean
  readonly live: boolean
  /** A snapshot is named that its missing chunks are read at. */
  readonly snapshot: boolean
  /** Its partitions are applied up to that snapshot. */
  readonly stands: boolean
  readonly missing: number
}

/** Total over all facts; SPEC.md says which changes apply in which state. */
export function tableState({ stopped, live, snapshot, stands, missing }: Facts): TableState {
  if (stopped) return 'stopped'
  if (live) return 'live'
  if (!snapshot) return 'waiting'
  if (!stands) return 'catching up'
  return missing > 0 ? 'copying' : 'copied'
}
