import type { Finding } from '../connector.ts'
import type { Offset, TopicPartition } from '../model.ts'
/** `cleanup`: what goes in time: `delete` all that is old; `size` what is old beyond the newest `keptBytes`; `compact` all but the newest of each key.
 *  `id`: the one recorded when it was made, if it is known. */
export type Topic = {
  readonly name: string
  readonly partitions: number
  readonly cleanup: 'delete' | 'size' | 'compact'
  readonly id?: string
}
/** Of a topic of cleanup `size` at least so much stays, however old it is. */
export const keptBytes: number = 64 * 1024 * 1024
/** One record batch without producer id, sequence and CRC, which the log stamps. Not reused before `append` settles. */
export type EncodedBatch = TopicPartition & { readonly bytes: Uint8Array; readonly count: number }
/** Records of one partition, decompressed and checked, as positions in `bytes`: 4 bounds a record (key start, end, value start, end; start -1: null).
 *  `offsets` rise with gaps; `next` is where reading goes on. Lent until the next `fetch` settles. */
export type FetchedBatch = TopicPartition & {
  readonly bytes: Uint8Array
  readonly count: number
  readonly offsets: Float64Array
  readonly bounds: Int32Array
  readonly next: number
  readonly end: number
}
export interface ChangeLog extends AsyncDisposable {
  /** What its servers would not bear as it is configured. Absent: there is nothing to ask. */
  check?(signal: AbortSignal): Promise<readonly Finding[]>
  /** Creates what is missing, and raises limits that the configuration has raised; TOPIC_MISMATCH if one exists with other partitions or settings, or is not the one we made. */
  open(topics: readonly Topic[], signal: AbortSignal): Promise<void>
  /** What names each of these topics for ever: another id under the same name is another topic. */
  topicIds(topics: readonly string[], signal: AbortSignal): Promise<ReadonlyMap<string, string>>
  /** Resolves when all are on all in-sync replicas. At most one batch a partition, one call at a time; identical bytes are resent until `signal` aborts. */
  append(round: readonly EncodedBatch[], signal: AbortSignal): Promise<readonly Offset[]>
  /** One pull: waits up to `maxWait` ms for data in any of `from`, also when `from` is empty. Lanes call it side by side and never wait for each
   *  other's pull. No state: not asking is pausing. LOG_GAP if an offset is not in the log. */
  fetch(from: readonly Offset[], maxWait: number, signal: AbortSignal): Promise<readonly FetchedBatch[]>
  /** True ends, not last stable offsets. */
  ends(partitions: readonly TopicPartition[], signal: AbortSignal): Promise<readonly Offset[]>
  /** The lowest offsets that retention has left; the end where nothing is left. */
  lows(partitions: readonly TopicPartition[], signal: AbortSignal): Promise<readonly Offset[]>
  /** Shares partitions with other workers; yields what is ours from now on. Absent: one process reads all. */
  join?(group: string, topics: readonly string[], signal: AbortSignal): AsyncIterable<readonly TopicPartition[]>
}
