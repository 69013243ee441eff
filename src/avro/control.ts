import avro from 'avsc'
import { z } from 'zod'
import type {
  Barrier,
  ControlRecord,
  Effect,
  Offset,
  Position,
  TableChange,
  TableId,
  TableSchema,
  TopicPartition,
} from '../model.ts'
import { Failure } from '../errors.ts'
import { controlKeySchema, controlSchema } from './control-schema.ts'
import { fingerprint, tableSchema, valueSchema } from './envelope.ts'

export const controlSchemaId: number = fingerprint(controlSchema)
const controlKeySchemaId: number = fingerprint(controlKeySchema)

/** A record as avsc has it: unions are wrapped under the name of their branch. */
type WireEffect = {
  'crossfade.Truncate'?: { tables: TableId[]; cascade: boolean; restartCounters: boolean }
  'crossfade.SchemaChange'?: { schema: string }
  'crossfade.Rekey'?: { schema: string; oldKey: Buffer; newImage: Buffer }
  'crossfade.Repartition'?: { topic: string; partitions: number }
}
type WireControl = {
  epoch: number
  body: {
    'crossfade.Watermark'?: {
      position: string
      published: string
      committed_us: number
      full: boolean
      ends: Offset[]
    }
    'crossfade.Barrier'?: {
      position: string
      seq: number
      committed_us: number
      partitions: TopicPartition[]
      effect: WireEffect
    }
    'crossfade.Epoch'?: Record<string, never>
  }
}

/** Longs as safe integers; the library's own reading is wrong below -2^52. */
const safeLong = avro.types.LongType.__with({
  fromBuffer: (bytes: Buffer) => {
    const value = Number(bytes.readBigInt64LE())
    if (!Number.isSafeInteger(value)) throw new RangeError('a long that is no safe integer')
    return value
  },
  toBuffer: (value: number) => {
    const bytes = Buffer.alloc(8)
    bytes.writeBigInt64LE(BigInt(value))
    return bytes
  },
  fromJSON: Number,
  toJSON: Number,
  isValid: Number.isSafeInteger,
  compare: (a: number, b: number) => a - b,
})
const options = { registry: { long: safeLong }, wrapUnions: true }
const controlType = avro.Type.forSchema(controlSchema as avro.Schema, { ...options, registry: { long: safeLong } })
const keyType = avro.Type.forSchema(controlKeySchema as avro.Schema, { ...options, registry: { long: safeLong } })

/** Framed key and value of a control record. The key is never null, and its own for each mark. */
export function encodeControl(record: ControlRecord): { key: Uint8Array; value: Uint8Array } {
  const { kind, epoch } = record
  const position = kind === 'watermark' ? record.position : kind === 'barrier' ? record.mark.position : ''
  const seq = kind === 'barrier' ? record.mark.seq : 0
  const wire: WireControl = { epoch, body: bodyOf(record) }
  return {
    key: frame(controlKeySchemaId, keyType.toBuffer({ kind, epoch, position, seq })),
    value: frame(controlSchemaId, controlType.toBuffer(wire)),
  }
}

function bodyOf(record: ControlRecord): WireControl['body'] {
  switch (record.kind) {
    case 'epoch':
      return { 'crossfade.Epoch': {} }
    case 'watermark': {
      const { position, published, committedAt, full, ends } = record
      return {
        'crossfade.Watermark': {
          position,
          published,
          committed_us: Math.round(committedAt * 1000),
          full,
          ends: [...ends],
        },
      }
    }
    case 'barrier': {
      const { mark, committedAt, partitions, effect } = record
      return {
        'crossfade.Barrier': {
          position: mark.position,
          seq: mark.seq,
          committed_us: Math.round(committedAt * 1000),
          partitions: [...partitions],
          effect: wireEffect(effect),
        },
      }
    }
  }
  return record satisfies never
}

function wireEffect(effect: Effect): WireEffect {
  switch (effect.kind) {
    case 'truncate': {
      const { tables, cascade, restartCounters } = effect
      return { 'crossfade.Truncate': { tables: [...tables], cascade, restartCounters } }
    }
    case 'schema':
      return {
        'crossfade.SchemaChange': {
          schema: JSON.stringify({ schema: valueSchema(effect.schema), changes: effect.changes }),
        },
      }
    case 'rekey':
      return {
        'crossfade.Rekey': {
          schema: JSON.stringify(valueSchema(effect.schema)),
          oldKey: Buffer.from(effect.oldKey),
          newImage: Buffer.from(effect.newImage),
        },
      }
    case 'repartition':
      return { 'crossfade.Repartition': { topic: effect.topic, partitions: effect.partitions } }
  }
  return effect satisfies never
}

/** Whether a value is framed as a control record; what others wrote to our topics is not. */
export function isControl(value: Uint8Array): boolean {
  const { byteOffset, length } = value
  if (length < 5 || value[0] !== 0) return false
  return new DataView(value.buffer, byteOffset, length).getUint32(1) === controlSchemaId
}

/** From the framed value. The result owns its memory. Throws LOG_DAMAGED at bytes that are no control record. */
export function decodeControl(value: Uint8Array): ControlRecord {
  const bytes = Buffer.from(value.buffer, value.byteOffset, value.length)
  if (!isControl(bytes)) throw damaged()
  let wire: WireControl
  try {
    wire = controlType.fromBuffer(bytes.subarray(5))
  } catch (cause) {
    throw damaged(cause)
  }
  const { epoch, body } = wire
  const watermark = body['crossfade.Watermark']
  if (watermark !== undefined) {
    const { position, published, committed_us, full, ends } = watermark
    return {
      kind: 'watermark',
      epoch,
      position: position as Position,
      published: published as Position,
      committedAt: committed_us / 1000,
      full,
      ends: ends.map(({ topic, partition, offset }) => ({ topic, partition, offset })),
    }
  }
  const barrier = body['crossfade.Barrier']
  if (barrier === undefined) return { kind: 'epoch', epoch }
  const partitions = barrier.partitions.map(({ topic, partition }) => ({ topic, partition }))
  const mark: Barrier['mark'] = { position: barrier.position as Position, seq: barrier.seq }
  return {
    kind: 'barrier',
    mark,
    committedAt: barrier.committed_us / 1000,
    epoch,
    partitions,
    effect: effectOf(barrier.effect),
  }
}

function effectOf(wire: WireEffect): Effect {
  const truncate = wire['crossfade.Truncate']
  if (truncate !== undefined) {
    const { tables, cascade, restartCounters } = truncate
    return { kind: 'truncate', tables: tables.map(({ schema, name }) => ({ schema, name })), cascade, restartCounters }
  }
  const change = wire['crossfade.SchemaChange']
  if (change !== undefined) return schemaChangeOf(change.schema)
  const rekey = wire['crossfade.Rekey']
  if (rekey !== undefined)
    return { kind: 'rekey', schema: schemaOf(rekey.schema), oldKey: rekey.oldKey, newImage: rekey.newImage }
  const repartition = wire['crossfade.Repartition']
  if (repartition === undefined) throw damaged()
  return { kind: 'repartition', topic: repartition.topic, partitions: repartition.partitions }
}

const text = z.string()
const tableChanges: z.ZodType<TableChange[]> = z.array(
  z.discriminatedUnion('kind', [
    z.strictObject({
      kind: z.literal('add'),
      column: text,
      type: text,
      collation: text.exactOptional(),
      value: text.exactOptional(),
      default: text.exactOptional(),
      proved: z.boolean(),
    }),
    z.strictObject({
      kind: z.literal('compute'),
      column: text,
      type: text,
      collation: text.exactOptional(),
      expression: text,
      stored: z.boolean(),
      proved: z.boolean(),
    }),
    z.strictObject({ kind: z.literal('drop'), column: text }),
    z.strictObject({ kind: z.literal('rename'), column: text, to: text }),
    z.strictObject({ kind: z.literal('retype'), column: text, from: text, type: text, proved: z.boolean() }),
    z.strictObject({ kind: z.literal('nullable'), column: text, nullable: z.boolean() }),
  ]),
)
const schemaChange = z.strictObject({ schema: z.looseObject({}), changes: tableChanges })
function schemaChangeOf(json: string): Effect {
  let found: z.infer<typeof schemaChange>
  try {
    found = schemaChange.parse(JSON.parse(json))
  } catch (cause) {
    throw damaged(cause)
  }
  return { kind: 'schema', schema: tableSchema(found.schema), changes: found.changes }
}

function schemaOf(text: string): TableSchema {
  let avroSchema: unknown
  try {
    avroSchema = JSON.parse(text)
  } catch (cause) {
    throw damaged(cause)
  }
  if (typeof avroSchema !== 'object' || avroSchema === null) throw damaged()
  return tableSchema(avroSchema)
}

function frame(id: number, body: Buffer): Buffer {
  const framed = Buffer.alloc(5 + body.length)
  framed.writeUInt32BE(id, 1)
  body.copy(framed, 5)
  return framed
}

function damaged(cause?: unknown): Failure {
  return new Failure('LOG_DAMAGED', { object: 'a control record', observed: 'bytes that are none', cause })
}
