declare const position: unique symbol
/** A place in one source's log. The text before the first `|` compares as a plain string; the rest is its connector's resume token. */
export type Position = string & { readonly [position]: true }
/** Names one change and orders all changes of a source. `position`: start of the commit record (never its end). `seq`: 4 x the number of the source's
 *  row message in its transaction, counted after aborted subtransactions are removed and before any filter of ours, plus 0-3 for the records made
 *  from one message; so a re-send numbers alike. */
export type Mark = { readonly position: Position; readonly seq: number }
/** Fencing token, higher for each new holder. A number, like offsets: below 2^53, checked where it enters. */
export type Epoch = number
export type TableId = { readonly schema: string; readonly name: string }
/** Native form of a cell in the log and at the sink. `text`: as the source prints it under pinned settings. */
export type Form = 'bool' | 'int16' | 'int32' | 'int64' | 'float32' | 'float64' | 'bytes' | 'text'
/** `type` is the source's own name for it: for sinks, registry and people; the core never looks inside. */
export type Column = { readonly name: string; readonly type: string; readonly form: Form; readonly nullable: boolean }
export type TableSchema = {
  readonly table: TableId
  readonly version: number
  readonly columns: readonly Column[]
  /** Indexes into `columns` in key order; empty: no key. */
  readonly key: readonly number[]
  /** What an old image holds: the key's cells only, or the whole row. */
  readonly before: 'key' | 'row'
  /** `document`: cells _id, document and patch, with Debezium's envelope for documents. */
  readonly shape: 'columns' | 'document'
  /** One partition only: no key, a unique constraint beside it, or a key whose equality is not equality of bytes (citext, numeric without a scale, -0). */
  readonly pinned: boolean
}
export type TopicPartition = { readonly topic: string; readonly partition: number }
/** The log offset to read next: all below it is durable, or applied. */
export type Offset = TopicPartition & { readonly offset: number }
/** How far one partition is applied, written in the transaction whose rows it vouches for. */
export type Checkpoint = Offset & {
  /** Last change applied (position '': none yet) and highest capture epoch seen tell repeats and zombies; `claim` is the random token it is written under. */
  readonly mark: Mark
  readonly captureEpoch: Epoch
  readonly claim: string
  /** Set by `Sink.setCopies`, never by a lane: changes after `hold` wait ('': all, absent: none); those up to `loose` may miss their row. */
  readonly hold?: Position
  readonly loose: Position
}
/** One partition's step. Its transaction fails unless the row still has this claim, hold and loose, and the offset `from`. */
export type Advance = { readonly from: number; readonly to: Checkpoint }
/** Where a table's copy stands; in the target. Not `live`: its partitions hold at `snapshot`, the position its missing chunks are read at ('': no
 *  snapshot yet). `rows`: how many were copied, once it is live. */
export type TableCopy = {
  readonly table: TableId
  readonly partitions: readonly TopicPartition[]
  readonly snapshot: Position
  readonly live: boolean
  readonly rows?: number
}
/** `position` is applied once every checkpoint has reached its offset in `ends`. `published`: no later place stands before `ends` (H11). */
export type Watermark = {
  readonly kind: 'watermark'
  readonly epoch: Epoch
  readonly position: Position
  readonly published: Position
  readonly committedAt: number
  readonly full: boolean
  readonly ends: readonly Offset[]
}
/** First record of a capture task in a partition: lower epochs after it are zombies. Has no mark: admitted by epoch alone. */
export type EpochRecord = { readonly kind: 'epoch'; readonly epoch: Epoch }
export type Barrier = {
  readonly kind: 'barrier'
  readonly mark: Mark
  readonly committedAt: number
  readonly epoch: Epoch
  readonly partitions: readonly TopicPartition[]
  readonly effect: Effect
}
/** One difference of a table from its version before. Types, values and expressions are the source's own texts. `proved`: rows that were there before read
 *  the same, or have `value`, at the target too; otherwise only an operator knows what the column holds in them. */
export type TableChange =
  | {
      readonly kind: 'add'
      readonly column: string
      readonly type: string
      readonly collation?: string
      /** What rows from before hold; absent: NULL. */
      readonly value?: string
      /** What new rows get where they name no value; absent: NULL. */
      readonly default?: string
      readonly proved: boolean
    }
  | {
      readonly kind: 'compute'
      readonly column: string
      readonly type: string
      readonly collation?: string
      readonly expression: string
      readonly stored: boolean
      readonly proved: boolean
    }
  | { readonly kind: 'drop'; readonly column: string }
  | { readonly kind: 'rename'; readonly column: string; readonly to: string }
  | {
      readonly kind: 'retype'
      readonly column: string
      readonly from: string
      readonly type: string
      readonly proved: boolean
    }
  | { readonly kind: 'nullable'; readonly column: string; readonly nullable: boolean }
/** Done once, in the transaction in which the last partition arrives. `rekey`: a key change whose new image has absent cells. */
export type Effect =
  | {
      readonly kind: 'truncate'
      readonly tables: readonly TableId[]
      readonly cascade: boolean
      readonly restartCounters: boolean
    }
  | { readonly kind: 'schema'; readonly schema: TableSchema; readonly changes: readonly TableChange[] }
  | { readonly kind: 'rekey'; readonly schema: TableSchema; readonly oldKey: Uint8Array; readonly newImage: Uint8Array }
  | { readonly kind: 'repartition'; readonly topic: string; readonly partitions: number }
export type ControlRecord = Watermark | Barrier | EpochRecord
/** Half-open part of a table in key order. Bounds are written and read by its connector; absent means open. A key that may sort differently at the
 *  other end (collation or its version) is one range. */
export type Range = {
  readonly table: TableId
  readonly from?: string
  readonly to?: string
  readonly estimatedRows: number
}
/** `replace`: the range may hold rows already (a resumed copy, a repair). */
export type Chunk = Range & { readonly id: string; readonly snapshot: Position; readonly replace: boolean }

/** What a type of the users' own is made of: the labels of an enumeration in their order, or the fields of a row. */
export type TypeParts = {
  readonly type: string
  readonly kind: 'labels' | 'fields'
  readonly parts: readonly { readonly name: string; readonly type?: string }[]
}
/** `changing`: names of tables whose changes come to their place in the stream: how the target differs is told, and no remedy but to run. `types`: what
 *  those of the users' own are made of. */
export type AboutSource = {
  readonly changing?: ReadonlySet<string> | undefined
  readonly types?: readonly TypeParts[] | undefined
}
/** `position`: at or after every commit visible before the call. Bytes kept for us under the name `slot`, and until they would be lost. */
export type Health = {
  readonly position: Position
  readonly slot?: string
  readonly retainedBytes?: number
  readonly safeBytes?: number
}
/** `value`: the next one it would give out. */
export type Counter = { readonly name: string; readonly value: bigint }
/** With the chunks that are done and the rows each loaded; a live table's are forgotten. */
export type CopyState = TableCopy & { readonly done: readonly Chunk['id'][]; readonly loaded: readonly number[] }
/** The end of the log when a table is added, and the highest epoch anyone wrote there: all up to `position` is in its copy, or was there before. */
export type Start = { readonly ends: readonly Offset[]; readonly position: Position; readonly epoch: Epoch }

/** From `Source.emit`, ours or another's, at its place between commits. */
export type Message = {
  readonly kind: 'message'
  readonly position: Position
  readonly committedAt: number
  readonly prefix: string
  readonly content: Uint8Array
}
/** What tables are made of. A `parent`: what a table is a partition or a child of. */
export type ShapeKind =
  | 'table'
  | 'column'
  | 'unique'
  | 'exclusion'
  | 'check'
  | 'foreign key'
  | 'index'
  | 'sequence'
  | 'trigger'
  | 'rule'
  | 'policy'
  | 'parent'
  | 'type'
  | 'extension'
  | 'collation'
/** One object at one end. Every text is such that objects made alike have the same one at both ends, whatever their versions. */
export type ShapeEntry = {
  readonly kind: ShapeKind
  /** As `tableName` has it; '': of none in particular. */
  readonly table: string
  readonly name: string
  /** Objects that mean the same are the same, whatever they are called. Absent: the name tells which is which. */
  readonly means?: string
  /** For people: how the object is defined, in the words of its own end. */
  readonly text: string
  /** What else may differ, by names that src/verify/shapes.ts knows; absent is the same as ''. `shown`: where people are told other words. */
  readonly parts: Readonly<Record<string, string>>
  readonly shown?: Readonly<Record<string, string>>
  /** The table that the object is inherited from, which has the same. */
  readonly of?: string
}

/** Prefix of a message that asks for a watermark at its place: the core's heartbeat. A source yields one of its own, without content, when its server
 *  wants to know that all is safe (it is shutting down). */
export const heartbeatPrefix = 'crossfade.heartbeat'

/** Position '' comes before every other. */
export function comparePositions(a: Position, b: Position): number {
  const left = place(a)
  const right = place(b)
  return left < right ? -1 : left > right ? 1 : 0
}
function place(position: Position): string {
  const bar = position.indexOf('|')
  return bar < 0 ? position : position.slice(0, bar)
}
export function compareMarks(a: Mark, b: Mark): number {
  return comparePositions(a.position, b.position) || a.seq - b.seq
}
/** Before every position and mark. */
export const origin: Position = '' as Position
/** For people and map keys: schema and name with a dot between; two tables never share it, as a part with a dot or a quote inside is quoted. */
export function tableName(table: TableId): string {
  return `${part(table.schema)}.${part(table.name)}`
}
function part(name: string): string {
  return name.includes('.') || name.includes('"') ? `"${name.replaceAll('"', '""')}"` : name
}
/** A map key; `/` never occurs in a topic's name. */
export function partitionName(at: TopicPartition): string {
  return `${at.topic}/${at.partition}`
}
