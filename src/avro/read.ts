/** Reading Avro's integers within bounds. `cursor.at` is where the next one begins; reading moves it. No state beside it, and nothing here waits, so
 *  one is enough. */
export const cursor: { at: number } = { at: 0 }
/** Thrown where bytes do not go on as they must; callers turn it into a Failure that names the record. */
export const broken: RangeError = new RangeError('bytes end early or are out of range')

export function readInt(bytes: Buffer, end: number): number {
  let at = cursor.at
  let value = 0
  let shift = 0
  for (;;) {
    if (at >= end) throw broken
    const byte = bytes[at++] as number
    if (shift === 28 && byte > 15) throw broken
    value |= (byte & 127) << shift
    if (byte < 128) break
    shift += 7
  }
  cursor.at = at
  return (value >>> 1) ^ -(value & 1)
}

/** Length of a string or of bytes; they are within the record. */
export function readSize(bytes: Buffer, end: number): number {
  const at = cursor.at
  const first = bytes[at] as number
  let size = first >>> 1
  if (at < end && first < 128 && (first & 1) === 0) cursor.at = at + 1
  else size = readInt(bytes, end)
  if (size < 0 || size > end - cursor.at) throw broken
  return size
}

/** A long that is a safe integer. */
export function readNumber(bytes: Buffer, end: number): number {
  let at = cursor.at
  let low = 0
  let shift = 0
  let byte = 128
  while (byte > 127 && shift < 28) {
    if (at >= end) throw broken
    byte = bytes[at++] as number
    low |= (byte & 127) << shift
    shift += 7
  }
  if (byte < 128) {
    cursor.at = at
    return (low >>> 1) ^ -(low & 1)
  }
  let high = 0
  shift = 0
  while (byte > 127 && shift < 28) {
    if (at >= end) throw broken
    byte = bytes[at++] as number
    high |= (byte & 127) << shift
    shift += 7
  }
  const half = high * 134217728 + (low >>> 1)
  if (byte > 127 || half > Number.MAX_SAFE_INTEGER) throw broken
  cursor.at = at
  return (low & 1) === 1 ? -half - 1 : half
}

export function skipLong(bytes: Buffer, end: number): void {
  for (let left = 10; left > 0; left--) {
    if (cursor.at >= end) break
    if ((bytes[cursor.at++] as number) < 128) return
  }
  throw broken
}

/** A long as 8 bytes, big-endian. */
export function readToNative(bytes: Buffer, end: number, to: DataView, at: number): void {
  let low = 0
  let high = 0
  let shift = 0
  let from = cursor.at
  for (;;) {
    if (from >= end) throw broken
    const byte = bytes[from++] as number
    const part = byte & 127
    if (shift < 28) low |= part << shift
    else if (shift === 28) {
      low |= part << 28
      high = part >>> 4
    } else {
      if (shift === 63 && byte > 1) throw broken
      high |= part << (shift - 32)
    }
    if (byte < 128) break
    shift += 7
  }
  cursor.at = from
  const sign = -(low & 1)
  low = ((low >>> 1) | (high << 31)) ^ sign
  high = (high >>> 1) ^ sign
  to.setInt32(at, high)
  to.setInt32(at + 4, low)
}
