/** Avro's zigzag variable-length integers, and the copying of bytes. Callers have made room: up to 5 bytes for an int, 10 for a long. */

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

/** Bytes and a view of the same: a word through the view costs as much as one byte without it. */
export type Memory = { readonly bytes: Buffer; readonly view: DataView }

export function memoryOf(bytes: Uint8Array): Memory {
  const { buffer, byteOffset, byteLength } = bytes
  return { bytes: Buffer.from(buffer, byteOffset, byteLength), view: new DataView(buffer, byteOffset, byteLength) }
}

let lastRead: Uint8Array | undefined
let lastWritten: Uint8Array | undefined
const nothing: Memory = memoryOf(new Uint8Array(0))
let readMemory: Memory = nothing
let writtenMemory: Memory = readMemory
/** `memoryOf` for what is read, and for what is written: asked for each row, so the last answer is kept. */
export function reading(bytes: Uint8Array): Memory {
  if (bytes !== lastRead) {
    readMemory = memoryOf(bytes)
    lastRead = bytes
  }
  return readMemory
}
/** The memory asked for last is no longer held on to: between batches it may be large. */
export function forgetMemory(): void {
  lastRead = lastWritten = undefined
  readMemory = writtenMemory = nothing
}
export function writing(bytes: Uint8Array): Memory {
  if (bytes !== lastWritten) {
    writtenMemory = memoryOf(bytes)
    lastWritten = bytes
  }
  return writtenMemory
}

/** Short runs by words; the native copy has a fixed price of about 120 bytes copied so. */
export function copyBytes(to: Memory, at: number, from: Memory, start: number, end: number): number {
  if (end - start > 120) {
    from.bytes.copy(to.bytes, at, start, end)
    return at + end - start
  }
  const target = to.view
  const source = from.view
  for (const last = end - 4; start <= last; start += 4) {
    target.setUint32(at, source.getUint32(start))
    at += 4
  }
  const { bytes } = from
  const written = to.bytes
  while (start < end) written[at++] = bytes[start++] as number
  return at
}
