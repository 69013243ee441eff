import { createHash } from 'node:crypto'
import type { Digest } from '../../src/connector.ts'

/** The digest of rows given as text, by the letter of docs/digest.md and nothing of ours. */
export function digestOf(rows: readonly (readonly (string | null)[])[]): Digest {
  let [first, second] = [0n, 0n]
  for (const row of rows) {
    const hash = createHash('sha256').update(canonicalBytes(row)).digest()
    first += hash.readBigUInt64BE(0)
    second += hash.readBigUInt64BE(8)
  }
  return { rows: rows.length, sums: [BigInt.asUintN(64, first), BigInt.asUintN(64, second)] }
}

export function canonicalBytes(row: readonly (string | null)[]): Buffer {
  const head = [1, row.includes(null) ? 1 : 0, 25, row.length, 1].map(int32)
  const cells = row.flatMap((text) =>
    text === null ? [int32(-1)] : [int32(Buffer.byteLength(text)), Buffer.from(text)],
  )
  return Buffer.concat([...head, ...cells])
}

function int32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeInt32BE(value)
  return bytes
}
