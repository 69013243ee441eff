// Row images to framed Avro and back, 10 columns of about 280 bytes as a source prints them: CPU µs a row, median of 25.
import { emptyPrefix } from '../src/avro/plan.ts'
import type { FetchedBatch } from '../src/change-log/change-log.ts'
import type { ChangeBatch } from '../src/rows.ts'
import type { Form, Position, TableSchema } from '../src/model.ts'
import { compileDecoder, readPrefix } from '../src/avro/decoder.ts'
import { compileEncoder } from '../src/avro/encoder.ts'
import { valueSchema } from '../src/avro/envelope.ts'
import { Output } from '../src/output.ts'
import { rowsOf, Tag } from '../src/rows.ts'

const rows = 20_000
const size = 2_000
let state = 42
function random(): number {
  state = (Math.imul(state, 1103515245) + 12345) >>> 0
  return state / 4294967296
}
function words(length: number): string {
  return Array.from({ length }, () => 'abcdefghijklmnopqrstuvwxyz '.charAt(Math.floor(random() * 27))).join('')
}
const forms: readonly Form[] = ['int64', 'int32', 'text', 'text', 'bool', 'text', 'text', 'float64', 'text', 'text']
const schema: TableSchema = {
  table: { schema: 'public', name: 'orders' },
  version: 1,
  columns: forms.map((form, i) => ({ name: `column_${i}`, type: form, form, nullable: i > 0 })),
  key: [0],
  before: 'key',
  shape: 'columns',
  pinned: false,
}
function printed(i: number): readonly (string | null)[] {
  const number = String(random() * 1000)
  const price = (random() * 1e5).toFixed(2)
  const json = `{"a": 1, "b": "${words(30)}"}`
  const last = random() < 0.2 ? null : words(8)
  const count = String(Math.floor(random() * 1e6))
  return [
    String(1e9 + i * 7),
    count,
    words(18),
    price,
    't',
    '2026-11-22 10:11:12.123456+00',
    words(80),
    number,
    json,
    last,
  ]
}
const batches: readonly ChangeBatch[] = Array.from({ length: rows / size }, (_, n) => ({
  kind: 'changes',
  count: size,
  images: rowsOf(
    Array.from({ length: 2 * size }, (_each, i) =>
      i % 2 === 0
        ? []
        : printed(n * size + i).map((text) => (text === null ? null : { tag: Tag.text, bytes: Buffer.from(text) })),
    ),
  ),
  op: new Uint8Array(size),
  table: new Uint16Array(size),
  schemas: [schema],
  transactions: [
    { position: '0000000016b3a2f8' as Position, committedAt: 1795341072123.456, id: '777001', first: 0, firstSeq: 0 },
  ],
}))
const encoder = compileEncoder(schema)
const out = new Output(1 << 20)
function encode(index?: (i: number, key: number, value: number, end: number) => void): void {
  out.at = 0
  for (const batch of batches) {
    if (index === undefined) out.at = 0
    for (let i = 0; i < size; i++) {
      const key = out.at
      encoder.key(out, batch.images, 2 * i + 1)
      const value = out.at
      encoder.value(out, batch, i, 4 * i, 3)
      index?.(i, key, value, out.at)
    }
  }
}
const bounds = new Int32Array(4 * rows)
let count = 0
encode((_, key, value, end) => bounds.set([key, value, value, end], 4 * count++))
const log: FetchedBatch = {
  topic: 'shop.public.orders',
  partition: 0,
  bytes: Buffer.from(out.bytes.subarray(0, out.at)),
  count,
  offsets: new Float64Array(rows),
  bounds,
  next: rows,
  end: rows,
}
const decoder = compileDecoder(valueSchema(schema))
const prefix = emptyPrefix()
const arena = new Output(1 << 20)
function decode(images: boolean): void {
  for (let i = 0; i < rows; i++) {
    if (i % size === 0) arena.at = 0
    readPrefix(log, i, prefix)
    if (images) decoder.images(arena, log, i, prefix)
  }
}
function measure(name: string, run: () => void): void {
  for (let i = 0; i < 6; i++) run()
  const times = Array.from({ length: 25 }, () => {
    const start = process.cpuUsage()
    run()
    const { user, system } = process.cpuUsage(start)
    return (user + system) / rows
  }).sort((a, b) => a - b)
  console.log(name.padEnd(32), times[12]?.toFixed(2), `[${times[2]?.toFixed(2)} .. ${times[22]?.toFixed(2)}]`)
}
console.log('bytes a record', (log.bytes.length / rows).toFixed(0))
measure('image to key and value', encode)
measure('prefix', () => decode(false))
measure('prefix and images', () => decode(true))
