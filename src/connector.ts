import type {
  AboutSource,
  Advance,
  Barrier,
  Checkpoint,
  Chunk,
  CopyState,
  Counter,
  Effect,
  Epoch,
  Health,
  Mark,
  Message,
  Position,
  Range,
  ShapeEntry,
  Start,
  TableCopy,
  TableId,
  TableSchema,
  TopicPartition,
  TypeParts,
} from './model.ts'
import type { ChangeBatch, ChunkData, LaneBatch, Mending, Rows } from './rows.ts'
import type { StateStore } from './coordinate/state-store.ts'
import type { ErrorCode } from './errors.ts'
import type { Logger } from './logger.ts'
/** One result of a preflight. `unknown`: could not be checked, never counts as ok. `remedy` can be copied and run. */
export type Finding = {
  readonly id: string
  readonly level: 'ok' | 'warning' | 'blocker' | 'unknown'
  readonly observed: string
  readonly needed: string
  readonly remedy?: string
  /** Of the error that kept it from being checked. */
  readonly code?: ErrorCode
}
/** Rows, and the sums of two 64-bit halves of their hashes (docs/digest.md). Digests of disjoint ranges add up, mod 2^64. */
export type Digest = { readonly rows: number; readonly sums: readonly [bigint, bigint] }
/** Whether a table is part of the pipeline. `within`: what it is a part of and may be named by, such as a partitioned table. */
export type TableFilter = (table: TableId, within?: readonly TableId[]) => boolean
/** Reads rows at either end: copy, verification, repair, backup. One call at a time; open several to read in parallel. */
export interface TableReader extends AsyncDisposable {
  /** Ranges of about `rows` rows; a single one where keys cannot be ranged. */
  ranges(schema: TableSchema, rows: number, signal: AbortSignal): Promise<readonly Range[]>
  /** Parts of a range, of about `rows` rows each; few where its key cannot be ranged, as each costs a look at all rows; itself where not worth it. */
  split(schema: TableSchema, range: Range, rows: number, signal: AbortSignal): Promise<readonly Range[]>
  /** Rows of a range, by key where there is one, lent until the next pull. As `frames` a transaction; TABLE_REWRITTEN if not the snapshot's table (H4). */
  rows(schema: TableSchema, range: Range, signal: AbortSignal): AsyncIterable<Rows>
  /** The rows of these keys in the same order; an empty image and version '' where there is none. Equal versions: the same row version. */
  lookup(schema: TableSchema, keys: Rows, signal: AbortSignal): Promise<Rows & { readonly versions: readonly string[] }>
  /** The versions of all rows that are the same as each of these whole rows. For tables without a key. */
  copies(schema: TableSchema, rows: Rows, signal: AbortSignal): Promise<readonly (readonly string[])[]>
  /** Bulk formats a range can be had in, best first. The core only compares the names. */
  formats?(schema: TableSchema): readonly string[]
  frames?(schema: TableSchema, range: Range, format: string, signal: AbortSignal): AsyncIterable<Uint8Array>
  /** By the database itself, the same as of `rows`; absent: the core hashes those. */
  digest?(schema: TableSchema, range: Range, signal: AbortSignal): Promise<Digest>
}
/** A view several readers share, also on other workers, until disposed of. Changes after `position` are to be applied to what is read in it.
 *  `exact`: no change up to `position` is missing and none after it is in. Otherwise rows may be newer, and count as consistent once a watermark
 *  written after the reading is applied. */
export interface Snapshot extends AsyncDisposable {
  readonly id: string
  readonly position: Position
  readonly exact: boolean
}
export type SourceEvent =
  | ChangeBatch
  | { readonly kind: 'effect'; readonly effect: Effect; readonly mark: Mark; readonly committedAt: number }
  | Message
/** Pulled; reads ahead by a bounded number of bytes, then leaves the socket alone. */
export interface ChangeStream extends AsyncIterable<SourceEvent>, AsyncDisposable {
  /** The next pull would not wait. */
  readonly waiting: boolean
  /** Everything up to `position` may be forgotten. Called only once it is durable in the log. */
  ack(position: Position): void
  /** Called before the first pull. SOURCE_DIVERGED unless the log it reads holds what was sent from `published`. Absent: no place ever comes again. */
  demandHeld?(published: Position): Promise<void>
}
export type Ddl = { readonly dialect: string; readonly content: Uint8Array; readonly notCopied: readonly string[] }
/** What either end is asked alike. */
export interface End extends AsyncDisposable {
  /** Tells the running database from every other: the same text at both ends is the same database. */
  identity?(signal: AbortSignal): Promise<string>
  /** What those of the source's tables that are there, by their names, consist of. */
  shape?(tables: readonly TableSchema[], signal: AbortSignal): Promise<readonly ShapeEntry[]>
}
/** Changes come from here. Nothing retries inside: after a rejection the core disposes of it and opens a new one. */
export interface Source extends End {
  /** `startAt`: as `adopt` will be asked to. */
  check(filter: TableFilter, signal: AbortSignal, startAt?: string): Promise<readonly Finding[]>
  tables(filter: TableFilter, signal: AbortSignal): Promise<readonly TableSchema[]>
  /** What the types of their columns are made of, however deep, where users say what. */
  types?(tables: readonly TableSchema[], signal: AbortSignal): Promise<readonly TypeParts[]>
  /** Every version of the retained tables handed on or about to be, oldest first; the target stands at one of each. Absent: tables never change. */
  versions?(signal: AbortSignal): Promise<readonly TableSchema[]>
  /** Makes the source keep changes of these tables; the first call returns a snapshot, a repeat adds what is missing, leaves out what is not named any
   *  more, and returns undefined. Changes of a table from before it was left out are passed over, also once it is added again. */
  retain(tables: readonly TableSchema[], signal: AbortSignal): Promise<Snapshot | undefined>
  /** Instead of `retain`, for a target that holds the data as of `startAt`, a place as the source's own tools print it: takes over what the operator made
   *  by hand under our name, which must keep every change from there on. Resolves to the position of that place; may be repeated like `retain`. */
  adopt?(tables: readonly TableSchema[], startAt: string, signal: AbortSignal): Promise<Position>
  /** One more view, for what is copied after a crash or added later. */
  snapshot(signal: AbortSignal): Promise<Snapshot>
  reader(at: Snapshot['id'] | 'now', signal: AbortSignal): Promise<TableReader>
  /** Whole transactions that commit after `after`, in commit order. Resolves once no former holder can acknowledge any more. One pull brings all that
   *  has arrived, up to a bound. */
  changes(after: Position, signal: AbortSignal): Promise<ChangeStream>
  /** Writes a message into the source's log: heartbeat, and proof that a fence has been passed. */
  emit(prefix: string, content: Uint8Array, signal: AbortSignal): Promise<void>
  health(signal: AbortSignal): Promise<Health>
  /** Resolves once a new reader sees every commit that anyone may have seen before the call, to a place at or after them. */
  visible(signal: AbortSignal): Promise<Position>
  /** Sessions at work at this moment, ours left out. */
  load?(signal: AbortSignal): Promise<number>
  /** The source's own DDL for `before` and `after`, for a sink of the same dialect; the core passes it on unread. UNSUPPORTED where `style` needs
   *  tools that are not there. */
  ddl?(tables: readonly TableSchema[], style: 'dump' | 'tables', signal: AbortSignal): Promise<Ddl>
  /** Counters behind the tables' columns as they stand now, to be set at the target when a copy becomes consistent. */
  counters?(filter: TableFilter, signal: AbortSignal): Promise<readonly Counter[]>
  /** Undoes `retain`. */
  release(signal: AbortSignal): Promise<void>
}
/** Changes go here. Every call may be repeated with the same arguments. */
export interface Sink extends End {
  check(tables: readonly TableSchema[], signal: AbortSignal, about?: AboutSource): Promise<readonly Finding[]>
  /** A blocker for each of these tables that holds rows already: a first copy would collide or mix with them. */
  occupied?(tables: readonly TableSchema[], signal: AbortSignal): Promise<readonly Finding[]>
  /** Those of the tables that are there already. */
  present(tables: readonly TableSchema[], signal: AbortSignal): Promise<readonly TableId[]>
  /** Own tables, and as configured missing target tables: `before` what the copy needs, `after` what would slow it. Never drops. */
  prepare(
    tables: readonly TableSchema[],
    phase: 'before' | 'after',
    ddl: Ddl | undefined,
    signal: AbortSignal,
  ): Promise<void>
  /** Holds, moves on or releases the partitions of these tables, all or none, and creates missing checkpoints. Once it resolves no lane commits past
   *  a hold and no chunk of another snapshot. Refused if a higher epoch wrote one. `start`: where missing checkpoints begin, if not before everything. */
  setCopies(copies: readonly TableCopy[], epoch: Epoch, signal: AbortSignal, start?: Start): Promise<void>
  /** Forgets these tables' copies, chunks and checkpoints, all or none; their rows stay as they are. No truncate touches them, and no barrier waits for
   *  them, any more. Refused as `setCopies` is. */
  leave(tables: readonly TableId[], epoch: Epoch, signal: AbortSignal): Promise<void>
  copies(signal: AbortSignal): Promise<readonly CopyState[]>
  checkpoints(signal: AbortSignal): Promise<readonly Checkpoint[]>
  lane(signal: AbortSignal): Promise<Lane>
  /** Sets counters so that the next value given out is theirs; a counter the target does not have is left out. */
  advance?(counters: readonly Counter[], signal: AbortSignal): Promise<void>
  reader(signal: AbortSignal): Promise<TableReader>
}
/** One connection to the target. Its calls never overlap; lanes run side by side. */
export interface Lane extends AsyncDisposable {
  /** Takes partitions over for this connection (a stuck former one is ended) and returns where to go on. `generation`: the group's; refused if older
   *  than the row's. */
  claim(partitions: readonly TopicPartition[], generation: number, signal: AbortSignal): Promise<readonly Checkpoint[]>
  /** Locks the partition's checkpoint, lets `read` fetch what is to stand at it, writes that, commits. Needs no claim. */
  repair(
    at: TopicPartition,
    schema: TableSchema,
    read: (at: Checkpoint) => Promise<Mending>,
    signal: AbortSignal,
  ): Promise<void>
  /** Rows and checkpoints, or neither; resolves when committed. Returns the partitions whose row is no longer as the advance expects: then nothing
   *  was written. ROW_REJECTED: names the change in `ordered()`. */
  apply(batch: LaneBatch, advances: readonly Advance[], signal: AbortSignal): Promise<readonly TopicPartition[]>
  /** Commits the checkpoint with the arrival; the last one performs the effect in its transaction. `waiting`: ask again until it is `done`. `lost`: the
   *  row is no longer as the advance expects, and nothing was written. */
  arrive(barrier: Barrier, advance: Advance, signal: AbortSignal): Promise<'done' | 'waiting' | 'lost'>
  /** Loads a chunk and marks it done, or neither. Rows loaded; undefined if it was done before. `epoch`: of the chunk's lease. */
  load(
    schema: TableSchema,
    chunk: Chunk,
    data: ChunkData,
    epoch: Epoch,
    signal: AbortSignal,
  ): Promise<number | undefined>
  /** Bulk formats the target's table takes as it stands. */
  formats?(schema: TableSchema): readonly string[]
}
/** What a connector is opened with. `dir`: a folder of this pipeline for spilled data, gone after a crash at no loss. */
export type Context = {
  readonly pipeline: string
  readonly dir: string
  readonly log: Logger
  /** Whether a sink makes a table's changes itself, or stops with what an operator has to run, which is the default. */
  readonly ddl?: 'apply' | 'stop'
}
/** One kind of database. What is absent, it cannot do. `parse` gets the connection's part of the configuration file and throws CONFIG_INVALID naming
 *  every bad key. */
export interface Connector<Config = unknown> {
  readonly name: string
  parse(raw: unknown): Config
  /** `state`: where the source records what it must recognise after a restart (system, timeline, what it retains). */
  openSource?(config: Config, context: Context, state: StateStore, signal: AbortSignal): Promise<Source>
  openSink?(config: Config, context: Context, signal: AbortSignal): Promise<Sink>
  openStore?(config: Config, context: Context, signal: AbortSignal): Promise<StateStore>
}
