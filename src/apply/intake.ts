import { decodeControl } from '../avro/control.ts'
import { readPrefix } from '../avro/decoder.ts'
import { emptyPrefix, framing, type Decoder } from '../avro/plan.ts'
import type { FetchedBatch } from '../change-log/change-log.ts'
import { comparePositions, tableName, type Offset, type TableSchema } from '../model.ts'
import { reserveChange, type Arrived, type Table } from './arrived.ts'
import type { Partition } from './partition.ts'

/** Records of the log into `arrived`: what counts is decoded and copied, the rest passed over. */
interface Intake {
  /** The schema that stopped a partition, and at which record; for the reader to clear. */
  missing: MissingSchema | undefined
  readonly dropped: { readonly repeats: number; readonly zombies: number }
  /** Reads on until the batch ends, or the partition comes to stand, or a schema is missing; returns the number of changes taken. */
  read(partition: Partition, batch: FetchedBatch): number
}
export type MissingSchema = { readonly id: number; readonly at: Offset }
type Known = { readonly decoder: Decoder; readonly table: number }

export function createIntake(arrived: Arrived, schemas: { decoder(id: number): Decoder | undefined }): Intake {
  const known = new Map<number, Known>()
  const dropped = { repeats: 0, zombies: 0 }
  const prefix = emptyPrefix()
  let lastId = -1
  let last: Known | undefined

  const lookUp = (id: number): Known | undefined => {
    if (id === lastId) return last
    let found = known.get(id)
    if (found === undefined) {
      const decoder = schemas.decoder(id)
      if (decoder === undefined) return undefined
      found = { decoder, table: arrived.tables.push(tableOf(decoder.schema)) - 1 }
      known.set(id, found)
    }
    lastId = id
    return (last = found)
  }

  /** False: the partition stands at this record. */
  const control = (partition: Partition, batch: FetchedBatch, i: number): boolean => {
    const record = decodeControl(batch.bytes.subarray(batch.bounds[4 * i + 2], batch.bounds[4 * i + 3]))
    if (record.epoch < partition.epoch) dropped.zombies++
    else if (record.kind === 'epoch') partition.epoch = record.epoch
    else if (record.kind === 'barrier') {
      const { position, seq } = record.mark
      if (partition.admit(position, seq, record.epoch) === 'repeat') dropped.repeats++
      else if (partition.holds(position)) {
        partition.standAtHold()
        return false
      } else {
        partition.stand = 'barrier'
        partition.barrier = record
        partition.offered = false
        return false
      }
    }
    return true
  }

  /** False: the partition stands at this record, or its schema is not known. */
  const change = (partition: Partition, batch: FetchedBatch, i: number): boolean => {
    const position = partition.positionAt(batch, prefix.positionStart, prefix.positionEnd)
    const { seq, epoch } = prefix
    const admission = partition.admit(position, seq, epoch)
    if (admission === 'zombie') {
      dropped.zombies++
      return true
    }
    if (admission === 'repeat') {
      dropped.repeats++
      partition.epoch = epoch
      return true
    }
    if (partition.holds(position)) {
      partition.standAtHold()
      return false
    }
    const schema = lookUp(prefix.schemaId)
    if (schema === undefined) {
      const { topic, partition: number } = batch
      intake.missing = { id: prefix.schemaId, at: { topic, partition: number, offset: batch.offsets[i] ?? 0 } }
      return false
    }
    const run = partition.run < 0 ? undefined : arrived.runs[partition.run]
    if (run === undefined || run.position !== position || run.epoch !== epoch) {
      const { loose, hold } = partition.at
      const mayMiss = hold !== undefined || comparePositions(position, loose) <= 0
      partition.run = arrived.runs.push({ position, committedAt: prefix.committedAt, epoch, mayMiss }) - 1
    }
    partition.position = position
    partition.seq = seq
    partition.epoch = epoch
    reserveChange(arrived)
    const { keys, images, count } = arrived
    const keyStart = batch.bounds[4 * i] ?? -1
    if (keyStart >= 0) {
      const from = keyStart + framing
      const to = batch.bounds[4 * i + 1] ?? from
      keys.reserve(to - from)
      for (let at = from; at < to; at++) keys.bytes[keys.at++] = batch.bytes[at] ?? 0
    }
    arrived.key[count + 1] = keys.at
    arrived.op[count] = prefix.op
    arrived.table[count] = schema.table
    arrived.run[count] = partition.run
    arrived.seq[count] = seq
    arrived.next[count] = (batch.offsets[i] ?? 0) + 1
    arrived.old[count] = images.at
    arrived.fresh[count] = schema.decoder.images(images, batch, i, prefix)
    arrived.end[count] = images.at
    arrived.count++
    return true
  }

  const read = (partition: Partition, batch: FetchedBatch): number => {
    const from = arrived.count
    let next = batch.next
    partition.run = -1
    for (let i = 0; i < batch.count; i++) {
      const kind = readPrefix(batch, i, prefix)
      if (kind === 'none') continue
      if (kind === 'change' ? change(partition, batch, i) : control(partition, batch, i)) continue
      next = batch.offsets[i] ?? partition.read
      break
    }
    partition.read = next
    if (arrived.count > from) partition.spans.push({ from, to: arrived.count })
    return arrived.count - from
  }

  const intake: Intake = { missing: undefined, dropped, read }
  return intake
}

/** Keys of these forms are equal exactly if their bytes are; a pinned table's other keys may not be (H6). */
const exact: ReadonlySet<string> = new Set(['bool', 'int16', 'int32', 'int64', 'bytes'])

function tableOf(schema: TableSchema): Table {
  const doubtful = schema.pinned && schema.key.some((column) => !exact.has(schema.columns[column]?.form ?? ''))
  const inOrder = schema.key.length === 0 || schema.shape === 'document' || doubtful
  return { schema, name: tableName(schema.table), inOrder }
}
