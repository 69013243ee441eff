import { encodeControl } from '../avro/control.ts'
import { framing, type Encoder } from '../avro/plan.ts'
import { schemaWriter } from '../avro/schema-ids.ts'
import type { EncodedBatch } from '../change-log/change-log.ts'
import { controlTopic, schemasTopic, type Route } from '../change-log/topics.ts'
import type { SourceEvent } from '../connector.ts'
import { Failure } from '../errors.ts'
import { hashRing, type HashRing } from '../hash-ring.ts'
import {
  comparePositions,
  origin,
  partitionName,
  tableName,
  type Effect,
  type Epoch,
  type Mark,
  type Offset,
  type Position,
  type TableId,
  type TableSchema,
  type TopicPartition,
  heartbeatPrefix,
} from '../model.ts'
import { Output } from '../output.ts'
import { hasAbsentCell, Op, type ChangeBatch, type Rows, type Transaction } from '../rows.ts'
import { createOutbox, type Outbox } from './outbox.ts'
import { forgetMemory } from '../avro/varint.ts'
import { createProof, type Wish } from './proof.ts'

/** Events to one record batch per partition; no I/O. Used by one capture loop: `opening`, `landed` for each of its rounds, then `add` and `take`,
 *  each `take` followed by its `landed` before the next one. */
export interface Publisher {
  /** Epoch records; the round of the control topic is to be on all replicas before the other is sent (H1). */
  opening(): readonly (readonly EncodedBatch[])[]
  /** After the opening: the newest place that anyone published from, for watermarks to tell (H11). */
  goOn(published: Position): void
  /** Encodes the event into the open batches; keeps none of its memory. */
  add(event: SourceEvent): void
  /** The byte bound is reached: no more `add` before a `take`. */
  readonly full: boolean
  /** Another round should follow at once: records that had no place in the last one, or what landed lets a watermark be written. */
  readonly due: boolean
  /** Anything to send, due or not. */
  readonly idle: boolean
  /** `proved`: the watermark in this round; all it vouches for landed in earlier rounds. */
  take(): { readonly round: readonly EncodedBatch[]; readonly proved: Position | undefined }
  /** The end offsets after the append of the round taken last. LOG_GAP if the log is not the one it was (H23). */
  landed(ends: readonly Offset[]): void
}
export type PublisherOptions = {
  readonly pipeline: string
  readonly epoch: Epoch
  /** Undefined: a table that is not captured. */
  readonly route: (table: TableId) => Route | undefined
  /** Every data partition, and the ends that are known when the capture starts. */
  readonly partitions: readonly TopicPartition[]
  readonly ends: readonly Offset[]
  /** Milliseconds, monotonic. */
  readonly clock: () => number
  readonly limits: { readonly roundBytes: number; readonly batchBytes: number; readonly messageBytes?: number }
  readonly compress?: boolean
  readonly onTruncate?: (tables: readonly TableId[], position: Position) => void
}

type Plan = {
  readonly schema: TableSchema
  readonly route: Route
  readonly encoder: Encoder
  readonly ring: HashRing
  readonly keyed: boolean
  /** By partition, looked up once. */
  readonly slots: (number | undefined)[]
}
const fullVectorEvery = 60_000

export function createPublisher(options: PublisherOptions): Publisher {
  const { pipeline, epoch, route, partitions, clock } = options
  const control: TopicPartition = { topic: controlTopic(pipeline), partition: 0 }
  const schemas: TopicPartition = { topic: schemasTopic(pipeline), partition: 0 }
  const outbox: Outbox = createOutbox(options.limits, options.compress ?? false)
  const proof = createProof()
  const writer = schemaWriter()
  const plans = new Map<TableSchema, Plan>()
  const ends = new Map(options.ends.map((end) => [partitionName(end), end.offset]))
  const captured = new Set(partitions.map(partitionName))
  let changed = new Set<string>()
  let fullVectorAt: number | undefined
  /** The newest places of what was added, was so when the last round was taken, and has landed. */
  let added: Position = origin
  let taken: Position = origin
  let published: Position = origin
  const record = new Output(64 * 1024)
  const oldKey = new Output(1024)

  const planOf = (schema: TableSchema): Plan => {
    const known = plans.get(schema)
    if (known !== undefined) return known
    const place = routeOf(route, schema.table)
    const { encoder, fresh } = writer.encoder(schema, place.topic)
    for (const { key, value } of fresh) outbox.addRecord(schemas, key, value, Date.now())
    const plan: Plan = {
      schema,
      route: place,
      encoder,
      ring: hashRing(place.pinned ? 1 : place.partitions),
      keyed: schema.key.length > 0,
      slots: [],
    }
    plans.set(schema, plan)
    return plan
  }

  const slotOf = (plan: Plan, partition: number): number => {
    const known = plan.slots[partition]
    if (known !== undefined) return known
    const at = { topic: plan.route.topic, partition }
    if (!captured.has(partitionName(at)))
      throw new Failure('BUG', { object: plan.route.topic, observed: `partition ${partition} was not opened` })
    return (plan.slots[partition] = outbox.slot(at))
  }

  /** Encodes change i and puts it into the partition of its key. */
  const publish = (
    plan: Plan,
    batch: ChangeBatch,
    i: number,
    image: number,
    seq: number,
    committedAt: number,
  ): void => {
    record.clear()
    if (plan.keyed) plan.encoder.key(record, batch.images, image)
    const keyEnd = record.at
    plan.encoder.value(record, batch, i, seq, epoch)
    const partition = plan.keyed ? plan.ring.partition(record.bytes, framing, keyEnd) : 0
    outbox.add(slotOf(plan, partition), record.bytes, plan.keyed ? 0 : -1, keyEnd, keyEnd, record.at, committedAt)
  }

  const barrier = (mark: Mark, committedAt: number, at: readonly TopicPartition[], effect: Effect): void => {
    const { key, value } = encodeControl({ kind: 'barrier', mark, committedAt, epoch, partitions: at, effect })
    for (const partition of at) outbox.addControl(partition, 'barrier', key, value, committedAt)
  }

  /** True if the update changed its key and was published as such. */
  const keyChange = (plan: Plan, batch: ChangeBatch, i: number, seq: number, transaction: Transaction): boolean => {
    const { images } = batch
    record.clear()
    oldKey.clear()
    plan.encoder.key(oldKey, images, 2 * i)
    plan.encoder.key(record, images, 2 * i + 1)
    if (sameBytes(oldKey, record)) return false
    const from = images.starts[2 * i] ?? 0
    const middle = images.starts[2 * i + 1] ?? 0
    const to = images.starts[2 * i + 2] ?? 0
    if (!hasAbsentCell(images.bytes, middle)) {
      const split = deleteAndInsert(batch, i, transaction, seq, [from, middle, middle, middle, to])
      publish(plan, split, 0, 0, seq, transaction.committedAt)
      publish(plan, split, 1, 3, seq + 1, transaction.committedAt)
      return true
    }
    const both = new Set([
      plan.ring.partition(oldKey.bytes, framing, oldKey.at),
      plan.ring.partition(record.bytes, framing, record.at),
    ])
    const at = [...both].sort((a, b) => a - b).map((partition) => ({ topic: plan.route.topic, partition }))
    barrier({ position: transaction.position, seq }, transaction.committedAt, at, {
      kind: 'rekey',
      schema: plan.schema,
      oldKey: Uint8Array.from(images.bytes.subarray(from, middle)),
      newImage: Uint8Array.from(images.bytes.subarray(middle, to)),
    })
    return true
  }

  const addChanges = (batch: ChangeBatch): void => {
    const { transactions, images, op, table } = batch
    for (let t = 0; t < transactions.length; t++) {
      const transaction = transactions[t]
      if (transaction === undefined) break
      const { first, firstSeq, committedAt } = transaction
      const end = transactions[t + 1]?.first ?? batch.count
      let schema: TableSchema | undefined
      let plan: Plan | undefined
      for (let i = first; i < end; i++) {
        const next = batch.schemas[table[i] ?? 0]
        if (plan === undefined || next !== schema) {
          if (next === undefined) throw new Failure('BUG', { observed: `change ${i} names no table` })
          plan = planOf((schema = next))
        }
        const seq = firstSeq + 4 * (i - first)
        const kind = op[i]
        const withOld = kind === Op.update && images.starts[2 * i] !== images.starts[2 * i + 1]
        if (withOld && plan.keyed && keyChange(plan, batch, i, seq, transaction)) continue
        publish(plan, batch, i, kind === Op.delete ? 2 * i : 2 * i + 1, seq, committedAt)
      }
    }
  }

  const watermark = ({ position, committedAt }: Wish): EncodedBatch => {
    const now = clock()
    const full = fullVectorAt === undefined || now - fullVectorAt >= fullVectorEvery
    if (full) fullVectorAt = now
    const named = full ? partitions : partitions.filter((at) => changed.has(partitionName(at)))
    const vector = named.map(({ topic, partition }) => {
      return { topic, partition, offset: ends.get(partitionName({ topic, partition })) ?? 0 }
    })
    if (full) changed = new Set()
    const value = encodeControl({ kind: 'watermark', epoch, position, published, committedAt, full, ends: vector })
    return outbox.control(control, 'watermark', value.key, value.value, committedAt)
  }

  return {
    opening() {
      const { key, value } = encodeControl({ kind: 'epoch', epoch })
      const now = Date.now()
      const first = (at: TopicPartition): EncodedBatch => outbox.control(at, 'epoch', key, value, now)
      return partitions.length === 0 ? [[first(control)]] : [[first(control)], partitions.map(first)]
    },
    goOn(from) {
      published = from
    },
    add(event) {
      switch (event.kind) {
        case 'changes':
          addChanges(event)
          added = event.transactions.at(-1)?.position ?? added
          return forgetMemory()
        case 'effect':
          added = event.mark.position
          if (event.effect.kind === 'truncate') options.onTruncate?.(event.effect.tables, event.mark.position)
          return barrier(event.mark, event.committedAt, concerned(event.effect, route, partitions), event.effect)
        case 'message':
          if (event.prefix === heartbeatPrefix) proof.wish(event, outbox.lastRound)
          return
        default:
          event satisfies never
      }
    },
    get full() {
      return outbox.bytes >= options.limits.roundBytes
    },
    get due() {
      return outbox.owing || proof.due
    },
    get idle() {
      return outbox.bytes === 0 && !proof.due
    },
    take() {
      const wish = proof.take()
      const data = outbox.take()
      taken = added
      return { round: wish === undefined ? data : [...data, watermark(wish)], proved: wish?.position }
    },
    landed(after) {
      for (const { topic, partition, offset } of after) {
        const name = partitionName({ topic, partition })
        const known = ends.get(name) ?? 0
        if (offset <= known) {
          throw new Failure('LOG_GAP', {
            object: `${topic}, partition ${partition}`,
            observed: `it ended at ${known}, and ends at ${offset} after an append`,
            needed: 'offsets that only rise: the topic was deleted and made anew, or lost acknowledged records',
          })
        }
        ends.set(name, offset)
        if (captured.has(name)) changed.add(name)
      }
      if (comparePositions(taken, published) > 0) published = taken
      proof.landed(outbox.landed())
    },
  }
}

function routeOf(route: PublisherOptions['route'], table: TableId): Route {
  const found = route(table)
  if (found !== undefined) return found
  throw new Failure('TABLE_CHANGED', { object: tableName(table), observed: 'it sends changes, and is not captured' })
}

/** All partitions of the tables an effect is about. */
function concerned(
  effect: Effect,
  route: PublisherOptions['route'],
  partitions: readonly TopicPartition[],
): readonly TopicPartition[] {
  if (effect.kind === 'repartition') return partitions.filter(({ topic }) => topic === effect.topic)
  const tables = effect.kind === 'truncate' ? effect.tables : [effect.schema.table]
  const at = new Map<string, TopicPartition>()
  for (const table of tables) {
    const { topic, partitions: count } = routeOf(route, table)
    for (let partition = 0; partition < count; partition++) at.set(`${topic}/${partition}`, { topic, partition })
  }
  return [...at.values()]
}

/** Change i of a batch as a delete of the old image and an insert of the new one, over the same bytes. */
function deleteAndInsert(
  { images, table, schemas }: ChangeBatch,
  i: number,
  transaction: Transaction,
  seq: number,
  starts: readonly number[],
): ChangeBatch {
  const rows: Rows = { bytes: images.bytes, starts: Int32Array.from(starts), count: 4 }
  const at = table[i] ?? 0
  return {
    kind: 'changes',
    count: 2,
    images: rows,
    op: Uint8Array.of(Op.delete, Op.insert),
    table: Uint16Array.of(at, at),
    schemas,
    transactions: [{ ...transaction, first: 0, firstSeq: seq }],
  }
}

function sameBytes(a: Output, b: Output): boolean {
  return a.at === b.at && a.bytes.compare(b.bytes, 0, b.at, 0, a.at) === 0
}
