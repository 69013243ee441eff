import { hash } from 'node:crypto'
import { nativeToText } from '../avro/native.ts'
import type { Digest, TableReader } from '../connector.ts'
import { Failure } from '../errors.ts'
import { tableName, type Range, type TableSchema } from '../model.ts'
import { Output } from '../output.ts'
import { cellLength, Tag, type Rows } from '../rows.ts'

/** The digest of a range: by the database itself where it can, otherwise from its rows. Rejects as the reader's calls do. */
export async function readDigest(
  reader: TableReader,
  schema: TableSchema,
  range: Range,
  signal: AbortSignal,
): Promise<Digest> {
  if (reader.digest) return await reader.digest(schema, range, signal)
  const digester = openDigester(schema)
  for await (const rows of reader.rows(schema, range, signal)) digester.add(rows)
  return digester.digest()
}

/** Adds rows up, in any order; docs/digest.md says to what. */
export type Digester = {
  /** Whole rows of the schema. An empty image is no row; an absent cell throws BUG. */
  add(rows: Rows): void
  /** Of all rows so far. */
  digest(): Digest
}

const headerBytes = 20
const two32 = 2 ** 32

/** The SHA-256 of a row's canonical bytes as a string of bytes. BUG for an image of other columns, or with an absent cell. */
export type RowHash = (image: Buffer, start: number, end: number) => string

export function rowHash(schema: TableSchema): RowHash {
  const forms = schema.columns.map(({ form }) => form)
  const mostOfNulls = 4 * forms.length
  const row = new Output(64 << 10)

  /** The canonical bytes of the image at `start` into `row`. */
  function write(image: Buffer, start: number, end: number): void {
    row.clear()
    row.reserve(headerBytes + mostOfNulls + end - start)
    let nulls = 0
    let from = start + 2
    row.at = headerBytes
    for (const form of forms) {
      const tag = image[from++]
      if (tag === Tag.null) {
        nulls = 1
        row.at = row.bytes.writeInt32BE(-1, row.at)
      } else if (tag === Tag.text || tag === Tag.native) {
        const length = cellLength(image, from)
        const to = from + 4 + length
        if (tag === Tag.native && form !== 'text') {
          const text = nativeToText(form, image.subarray(from + 4, to))
          row.reserve(4 + text.length + mostOfNulls + end - to)
          row.at = row.bytes.writeInt32BE(text.length, row.at)
          row.at += row.bytes.write(text, row.at, 'latin1')
        } else {
          // The length as it is, and the bytes. A call for a few bytes costs more than the bytes.
          const { bytes } = row
          let at = row.at
          if (length > 48) at += image.copy(bytes, at, from, to)
          else for (let next = from; next < to; next++) bytes[at++] = image[next] ?? 0
          row.at = at
        }
        from = to
      } else throw unfit(tag === Tag.absent ? 'a cell that was not sent' : `cell tag ${tag}`)
    }
    if (from !== end) throw unfit(`an image of ${end - start} bytes`)
    const { bytes } = row
    bytes.writeInt32BE(1, 0)
    bytes.writeInt32BE(nulls, 4)
    bytes.writeInt32BE(25, 8)
    bytes.writeInt32BE(forms.length, 12)
    bytes.writeInt32BE(1, 16)
  }
  function unfit(observed: string): Failure {
    return new Failure('BUG', { object: tableName(schema.table), observed: `a row to hash with ${observed}` })
  }

  return (image, start, end) => {
    if (image.readUInt16BE(start) !== forms.length) throw unfit(`${image.readUInt16BE(start)} cells`)
    write(image, start, end)
    // A string of bytes: a third of the price of a buffer.
    return hash('sha256', row.bytes.subarray(0, row.at), 'binary')
  }
}

export function openDigester(schema: TableSchema): Digester {
  const hashOf = rowHash(schema)
  let count = 0
  let firstHigh = 0
  let firstLow = 0
  let secondHigh = 0
  let secondLow = 0
  return {
    add({ bytes, starts, count: images }) {
      const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
      for (let i = 0; i < images; i++) {
        const start = starts[i] ?? 0
        const end = starts[i + 1] ?? 0
        if (start === end) continue
        const hashed = hashOf(buffer, start, end)
        // Unsigned additions in 64 bits: the carry of the lower half goes to the upper one.
        firstLow += word(hashed, 4)
        secondLow += word(hashed, 12)
        firstHigh = (firstHigh + word(hashed, 0) + (firstLow >= two32 ? 1 : 0)) % two32
        secondHigh = (secondHigh + word(hashed, 8) + (secondLow >= two32 ? 1 : 0)) % two32
        firstLow %= two32
        secondLow %= two32
        count++
      }
    },
    digest: () => ({
      rows: count,
      sums: [joined(firstHigh, firstLow), joined(secondHigh, secondLow)],
    }),
  }
}

/** Four characters of a string of bytes as an unsigned number. */
function word(text: string, at: number): number {
  return (
    ((text.charCodeAt(at) << 24) |
      (text.charCodeAt(at + 1) << 16) |
      (text.charCodeAt(at + 2) << 8) |
      text.charCodeAt(at + 3)) >>>
    0
  )
}

function joined(high: number, low: number): bigint {
  return (BigInt(high) << 32n) | BigInt(low)
}
