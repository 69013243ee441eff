import type { Form } from '../model.ts'
import { float, parseFloat32, parseFloat64, printFloat } from './float-text.ts'

/** Forms as small numbers, for the switches of compiled plans. `skip`: the cell is not trusted, and written as null. */
export const Code = {
  text: 0,
  int64: 1,
  int32: 2,
  int16: 3,
  bool: 4,
  float64: 5,
  float32: 6,
  bytes: 7,
  skip: 8,
} as const
export function codeOf(form: Form): number {
  return Code[form]
}

/** Where `parseLong` leaves the high and the low half. */
export const long: Int32Array = new Int32Array(2)
const notInteger = Number.NaN

/** A decimal integer of up to 15 digits; NaN if it is longer or none. */
export function parseInteger(bytes: Buffer, start: number, end: number): number {
  const negative = bytes[start] === 0x2d
  let at = negative ? start + 1 : start
  if (at >= end || end - at > 15) return notInteger
  let value = 0
  while (at < end) {
    const digit = (bytes[at++] as number) - 48
    if (digit < 0 || digit > 9) return notInteger
    value = value * 10 + digit
  }
  return negative ? 0 - value : value
}

/** A decimal integer of 64 bits into `long`; false if it is none. */
export function parseLong(bytes: Buffer, start: number, end: number): boolean {
  const negative = bytes[start] === 0x2d
  let at = negative ? start + 1 : start
  const digits = end - at
  if (digits < 1 || digits > 19) return false
  let upper = 0
  let lower = 0
  // all but the last nine digits, then those: each part is exact in a double
  for (const split = end - 9; at < end; at++) {
    const digit = (bytes[at] as number) - 48
    if (digit < 0 || digit > 9) return false
    if (at < split) upper = upper * 10 + digit
    else lower = lower * 10 + digit
  }
  // upper * 10^9 + lower, upper split so that no product leaves 2^53
  const product = Math.floor(upper / 65536) * 1e9
  const sum = (product % 65536) * 65536 + (upper % 65536) * 1e9 + lower
  const high = Math.floor(product / 65536) + Math.floor(sum / 4294967296)
  const low = sum % 4294967296
  if (high >= 2147483648 && !(negative && high === 2147483648 && low === 0)) return false
  long[0] = negative ? ~high + (low === 0 ? 1 : 0) : high
  long[1] = negative ? -low : low
  return true
}

/** -1 if the hexadecimal text (with its `\x`) is none, else the number of bytes it stands for. */
export function hexLength(bytes: Buffer, start: number, end: number): number {
  if (end - start < 2 || bytes[start] !== 0x5c || bytes[start + 1] !== 0x78 || (end - start) % 2 !== 0) return -1
  return (end - start - 2) / 2
}

const nibbles = new Int8Array(256).fill(-1)
for (let i = 0; i < 16; i++) {
  nibbles[i.toString(16).charCodeAt(0)] = i
  nibbles[i.toString(16).toUpperCase().charCodeAt(0)] = i
}
/** Writes the bytes of digits [start, end); -1 at a character that is none. */
export function writeHex(to: Buffer, at: number, from: Buffer, start: number, end: number): number {
  while (start < end) {
    const byte = ((nibbles[from[start] as number] as number) << 4) | (nibbles[from[start + 1] as number] as number)
    if (byte < 0) return -1
    to[at++] = byte
    start += 2
  }
  return at
}

/** The native bytes of a text; undefined if it is none of its form. For single cells: rows go through compiled plans. */
export function textToNative(form: Form, text: string): Buffer | undefined {
  const bytes = Buffer.from(text)
  const whole = (size: 2 | 4): Buffer | undefined => {
    const value = parseInteger(bytes, 0, bytes.length)
    const limit = 2 ** (8 * size - 1)
    if (!(value >= -limit && value < limit)) return undefined
    const native = Buffer.alloc(size)
    native.writeIntBE(value, 0, size)
    return native
  }
  switch (form) {
    case 'text':
      return bytes
    case 'bool':
      return text === 't' || text === 'f' ? Buffer.from([text === 't' ? 1 : 0]) : undefined
    case 'int16':
      return whole(2)
    case 'int32':
      return whole(4)
    case 'int64': {
      if (!parseLong(bytes, 0, bytes.length)) return undefined
      const native = Buffer.alloc(8)
      native.writeInt32BE(long[0] as number, 0)
      native.writeInt32BE(long[1] as number, 4)
      return native
    }
    case 'float32':
    case 'float64': {
      const size = form === 'float32' ? 4 : 8
      if (!(size === 4 ? parseFloat32 : parseFloat64)(bytes, 0, bytes.length)) return undefined
      const native = Buffer.alloc(size)
      if (size === 4) native.writeFloatBE(float[0] as number)
      else native.writeDoubleBE(float[0] as number)
      return native
    }
    case 'bytes': {
      const size = hexLength(bytes, 0, bytes.length)
      if (size < 0) return undefined
      const native = Buffer.alloc(size)
      return writeHex(native, 0, bytes, 2, bytes.length) < 0 ? undefined : native
    }
  }
  return form satisfies never
}

/** The text a native cell stands for, as the sources print it. For reports and tests. */
export function nativeToText(form: Form, native: Uint8Array): string {
  const bytes = Buffer.from(native.buffer, native.byteOffset, native.byteLength)
  switch (form) {
    case 'text':
      return bytes.toString()
    case 'bool':
      return bytes[0] === 1 ? 't' : 'f'
    case 'int16':
      return String(bytes.readInt16BE())
    case 'int32':
      return String(bytes.readInt32BE())
    case 'int64':
      return String(bytes.readBigInt64BE())
    case 'float32':
      return printFloat(bytes.readFloatBE(), 32)
    case 'float64':
      return printFloat(bytes.readDoubleBE(), 64)
    case 'bytes':
      return `\\x${bytes.toString('hex')}`
  }
  return form satisfies never
}
