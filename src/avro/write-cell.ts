import { Tag } from '../rows.ts'
import { Code, hexLength, long, parseInteger, parseLong, writeHex } from './native.ts'
import { float, parseFloat32, parseFloat64 } from './float-text.ts'
import { copyBytes, writeInt, writeLong, writeNumber } from './varint.ts'

const view = new DataView(new ArrayBuffer(8))
const viewBytes = new Uint8Array(view.buffer)

/** Writes the Avro value of one cell, text or native, at [start, end). -1 if it is none of its form. Room for 10 bytes more than the cell has been made. */
export function writeCell(
  to: Buffer,
  at: number,
  code: number,
  tag: number,
  from: Buffer,
  start: number,
  end: number,
): number {
  if (tag === Tag.text) {
    switch (code) {
      case Code.text:
        return copyBytes(to, writeInt(to, at, end - start), from, start, end)
      case Code.int64: {
        const value = parseInteger(from, start, end)
        if (value === value) return writeNumber(to, at, value)
        return parseLong(from, start, end) ? writeLong(to, at, long[0] as number, long[1] as number) : -1
      }
      case Code.int32: {
        const value = parseInteger(from, start, end)
        return value >= -2147483648 && value <= 2147483647 ? writeInt(to, at, value) : -1
      }
      case Code.int16: {
        const value = parseInteger(from, start, end)
        return value >= -32768 && value <= 32767 ? writeInt(to, at, value) : -1
      }
      case Code.bool: {
        if (end - start !== 1) return -1
        const letter = from[start]
        if (letter !== 0x74 && letter !== 0x66) return -1
        to[at] = letter === 0x74 ? 1 : 0
        return at + 1
      }
      case Code.float64:
        if (!parseFloat64(from, start, end)) return -1
        view.setFloat64(0, float[0] as number, true)
        return copyView(to, at, 8)
      case Code.float32:
        if (!parseFloat32(from, start, end)) return -1
        view.setFloat32(0, float[0] as number, true)
        return copyView(to, at, 4)
      case Code.bytes: {
        const size = hexLength(from, start, end)
        return size < 0 ? -1 : writeHex(to, writeInt(to, at, size), from, start + 2, end)
      }
    }
    return -1
  }
  return tag === Tag.native ? writeNative(to, at, code, from, start, end) : -1
}

function writeNative(to: Buffer, at: number, code: number, from: Buffer, start: number, end: number): number {
  const size = end - start
  switch (code) {
    case Code.int64:
      return size === 8 ? writeLong(to, at, from.readInt32BE(start), from.readInt32BE(start + 4)) : -1
    case Code.int32:
      return size === 4 ? writeInt(to, at, from.readInt32BE(start)) : -1
    case Code.int16:
      return size === 2 ? writeInt(to, at, from.readInt16BE(start)) : -1
    case Code.bool: {
      const value = from[start] as number
      if (size !== 1 || value > 1) return -1
      to[at] = value
      return at + 1
    }
    case Code.float64:
      return size === 8 ? copyReversed(to, at, from, start, end) : -1
    case Code.float32:
      return size === 4 ? copyReversed(to, at, from, start, end) : -1
    case Code.bytes:
      return copyBytes(to, writeInt(to, at, size), from, start, end)
  }
  return -1
}

function copyView(to: Buffer, at: number, size: number): number {
  for (let i = 0; i < size; i++) to[at + i] = viewBytes[i] as number
  return at + size
}

/** Big-endian to little-endian, or back. */
export function copyReversed(to: Buffer, at: number, from: Buffer, start: number, end: number): number {
  while (end > start) to[at++] = from[--end] as number
  return at
}
