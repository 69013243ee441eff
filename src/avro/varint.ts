/** Avro's zigzag variable-length integers, and the copying of short runs of bytes. Callers have made room: up to 5 bytes for an int, 10 for a long. */

export function writeInt(to: Buffer, at: number, value: number): number {
  let left = (value << 1) ^ (value >> 31)
  while ((left & ~127) !== 0) {
    to[at++] = (left & 127) | 128
    left >>>= 7
  }
  to[at++] = left
  return at
}

/** A long as two's complement in two 32-bit halves. */
export function writeLong(to: Buffer, at: number, high: number, low: number): number {
  const sign = high >> 31
  let upper = ((high << 1) | (low >>> 31)) ^ sign
  let lower = (low << 1) ^ sign
  while (upper !== 0) {
    to[at++] = (lower & 127) | 128
    lower = (lower >>> 7) | (upper << 25)
    upper >>>= 7
  }
  while ((lower & ~127) !== 0) {
    to[at++] = (lower & 127) | 128
    lower >>>= 7
  }
  to[at++] = lower
  return at
}

/** A long from a safe integer. */
export function writeNumber(to: Buffer, at: number, value: number): number {
  if ((value | 0) === value) return writeInt(to, at, value)
  return writeLong(to, at, Math.floor(value / 4294967296) | 0, value | 0)
}

/** The native copy has a fixed price of about 48 bytes copied here. */
export function copyBytes(to: Buffer, at: number, from: Buffer, start: number, end: number): number {
  if (end - start > 48) {
    from.copy(to, at, start, end)
    return at + end - start
  }
  while (start < end) to[at++] = from[start++] as number
  return at
}

let lastBytes: Uint8Array | undefined
let lastBuffer: Buffer = Buffer.alloc(0)
/** The same memory with Buffer's methods: plans see one kind of array, which keeps their machine code short. Asked for each row, so the last answer is kept. */
export function asBuffer(bytes: Uint8Array): Buffer {
  if (Buffer.isBuffer(bytes)) return bytes
  if (bytes === lastBytes) return lastBuffer
  lastBytes = bytes
  lastBuffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  return lastBuffer
}
