import { z } from 'zod'
import type { ChangeLog, FetchedBatch } from '../change-log/change-log.ts'
import type { Offset, TableSchema } from '../model.ts'
import type { Decoder, Encoder } from './plan.ts'
import { Failure } from '../errors.ts'
import { controlKeySchema, controlSchema } from './control-schema.ts'
import { compileDecoder, strangerNext } from './decoder.ts'
import { compileEncoder } from './encoder.ts'
import { canonical, fingerprintOf, keySchema, valueSchema } from './envelope.ts'

/** One record of the schemas topic, which is compacted by its key, the id. */
export type SchemaRecord = { readonly key: Uint8Array; readonly value: Uint8Array }
type SchemaWriter = {
  /** The encoder of a table, the same for the same schema object; and the records to append with or before its first record: only the first call for
   *  a schema brings any. `topic` names the subjects a registry would use. */
  encoder(schema: TableSchema, topic?: string): { readonly encoder: Encoder; readonly fresh: readonly SchemaRecord[] }
}
export type SchemaReader = {
  decoder(id: number): Decoder | undefined
  /** Reads the schemas topic on until `decoder` knows the id; calls may overlap. LOG_GAP if it does not come in time. `at`: the record that names it. */
  load(id: number, signal: AbortSignal, at?: Offset): Promise<void>
}

export function schemaWriter(): SchemaWriter {
  const known = new Map<number, string>()
  const tables = new Map<TableSchema, { readonly encoder: Encoder; readonly fresh: readonly SchemaRecord[] }>()
  const announce = (avro: object, subject: string): readonly SchemaRecord[] => {
    const text = canonical(avro)
    const id = fingerprintOf(text)
    if (!register(known, id, text)) return []
    return [schemaRecord(id, subject, avro)]
  }
  return {
    encoder(schema, topic = `${schema.table.schema}.${schema.table.name}`) {
      const found = tables.get(schema)
      if (found !== undefined) return found
      const fresh = [
        ...announce(controlKeySchema, 'crossfade.control-key'),
        ...announce(controlSchema, 'crossfade.control-value'),
        ...(schema.key.length === 0 ? [] : announce(keySchema(schema), `${topic}-key`)),
        ...announce(valueSchema(schema), `${topic}-value`),
      ]
      const encoder = compileEncoder(schema)
      tables.set(schema, { encoder, fresh: [] })
      return { encoder, fresh }
    },
  }
}

export function schemaReader(log: ChangeLog, topic: string, { wait = 30_000 }: { wait?: number } = {}): SchemaReader {
  const known = new Map<number, string>()
  const decoders = new Map<number, Decoder>()
  let next = 0
  let reading: Promise<void> | undefined
  const read = async (maxWait: number, signal: AbortSignal): Promise<void> => {
    for (const batch of await log.fetch([{ topic, partition: 0, offset: next }], maxWait, signal)) {
      for (let i = 0; i < batch.count; i++) {
        const entry = readRecord(batch, i)
        if (entry === undefined || !register(known, entry.id, entry.text) || !entry.envelope) continue
        decoders.set(entry.id, compileDecoder(entry.avro))
      }
      next = batch.next
    }
  }
  return {
    decoder: (id) => decoders.get(id),
    async load(id, signal, at) {
      const deadline = performance.now() + wait
      while (!decoders.has(id)) {
        signal.throwIfAborted()
        const left = deadline - performance.now()
        if (left <= 0)
          throw new Failure('LOG_GAP', {
            object:
              at === undefined ? `schema ${id}` : `topic ${at.topic}, partition ${at.partition}, offset ${at.offset}`,
            observed: `this record names schema ${id}, which did not come in ${topic} within ${wait / 1000} s`,
            needed: 'records of crossfade only, and each schema they name',
            effect: 'nothing from this record on is applied',
            next: strangerNext,
          })
        // one reading at a time: the next begins where it ended
        const others = reading
        reading ??= read(Math.min(left, 500), signal).finally(() => {
          reading = undefined
        })
        // another caller's failure may be its own signal's: then it is read again
        await (others === undefined ? reading : others.catch(() => {}))
      }
    },
  }
}

/** True if the id is new. Two texts under one id cannot be told apart by any reader. */
function register(known: Map<number, string>, id: number, text: string): boolean {
  const before = known.get(id)
  if (before === text) return false
  if (before !== undefined)
    throw new Failure('UNSUPPORTED', {
      object: `schema id ${id}`,
      observed: 'two schemas with the same fingerprint',
      next: 'Rename a column or table, or exclude one of the two tables',
    })
  known.set(id, text)
  return true
}

function schemaRecord(id: number, subject: string, avro: object): SchemaRecord {
  const value = { id, subject, schemaType: 'AVRO', schema: JSON.stringify(avro) }
  return { key: Buffer.from(JSON.stringify({ id })), value: Buffer.from(JSON.stringify(value)) }
}

const stored = z.object({ id: z.int(), subject: z.string(), schema: z.string() })
const named = z.looseObject({ name: z.string(), crossfade: z.unknown().optional() })

/** As `schemaRecord` writes it. */
const keyText = /^\{"id":\d+\}$/

/** Undefined: no record of ours; others may have written to the topic. */
function readRecord(
  batch: FetchedBatch,
  i: number,
): { id: number; avro: object; text: string; envelope: boolean } | undefined {
  const keyStart = batch.bounds[4 * i] ?? -1
  const start = batch.bounds[4 * i + 2] ?? -1
  if (keyStart < 0 || start < 0) return undefined
  if (!keyText.test(Buffer.from(batch.bytes.subarray(keyStart, batch.bounds[4 * i + 1])).toString())) return undefined
  const value = Buffer.from(batch.bytes.subarray(start, batch.bounds[4 * i + 3])).toString()
  try {
    const { id, schema } = stored.parse(JSON.parse(value))
    const avro = named.parse(JSON.parse(schema))
    const text = canonical(avro)
    if (fingerprintOf(text) !== id) throw new RangeError('the id is not the schema’s')
    return { id, avro, text, envelope: avro.name === 'Envelope' }
  } catch (cause) {
    throw new Failure('LOG_DAMAGED', {
      object: `${batch.topic} at offset ${batch.offsets[i]}`,
      observed: 'a record that is no schema of ours',
      cause,
    })
  }
}
