import { Tag } from '../rows.ts'
import { Code, hexLength, long, parseInteger, parseLong, writeHex } from './native.ts'
import { float, parseFloat32, parseFloat64 } from './float-text.ts'
import { copyBytes, writeInt, writeLong, writeNumber, type Memory } from './varint.ts'

/** Writes the Avro value of one cell, text or native, at [start, end). -1 if it is none of its form. Room for 10 bytes more than the cell has been made. */
export function writeCell(
  to: Memory,
  at: number,
  code: number,
  tag: number,
  from: Memory,
  start: number,
  end: number,
): number {
  if (tag === Tag.text) return writeText(to, at, code, from, start, end)
  return tag === Tag.native ? writeNative(to, at, code, from, start, end) : -1
}

function writeText(to: Memory, at: number, code: number, from: Memory, start: number, end: number): number {
  const { bytes } = from
  switch (code) {
    case Code.text:
      return copyBytes(to, writeInt(to.bytes, at, end - start), from, start, end)
    case Code.int64: {
      const value = parseInteger(bytes, start, end)
      if (value === value) return writeNumber(to.bytes, at, value)
      return parseLong(bytes, start, end) ? writeLong(to.bytes, at, long[0] as number, long[1] as number) : -1
    }
    case Code.int32: {
      const value = parseInteger(bytes, start, end)
      return value >= -2147483648 && value <= 2147483647 ? writeInt(to.bytes, at, value) : -1
    }
    case Code.int16: {
      const value = parseInteger(bytes, start, end)
      return value >= -32768 && value <= 32767 ? writeInt(to.bytes, at, value) : -1
    }
    case Code.bool: {
      const letter = bytes[start]
      if (end - start !== 1 || (letter !== 0x74 && letter !== 0x66)) return -1
      to.bytes[at] = letter === 0x74 ? 1 : 0
      return at + 1
    }
    case Code.float64:
      if (!parseFloat64(bytes, start, end)) return -1
      to.view.setFloat64(at, float[0] as number, true)
      return at + 8
    case Code.float32:
      if (!parseFloat32(bytes, start, end)) return -1
      to.view.setFloat32(at, float[0] as number, true)
      return at + 4
    case Code.bytes: {
      const size = hexLength(bytes, start, end)
      return size < 0 ? -1 : writeHex(to.bytes, writeInt(to.bytes, at, size), bytes, start + 2, end)
    }
  }
  return -1
}

/** Floats go as words, not as numbers: the bits of a NaN stay. */
function writeNative(to: Memory, at: number, code: number, from: Memory, start: number, end: number): number {
  const size = end - start
  const { view } = from
  switch (code) {
    case Code.int64:
      return size === 8 ? writeLong(to.bytes, at, view.getInt32(start), view.getInt32(start + 4)) : -1
    case Code.int32:
      return size === 4 ? writeInt(to.bytes, at, view.getInt32(start)) : -1
    case Code.int16:
      return size === 2 ? writeInt(to.bytes, at, view.getInt16(start)) : -1
    case Code.bool: {
      if (size !== 1) return -1
      const value = view.getUint8(start)
      to.bytes[at] = value
      return value > 1 ? -1 : at + 1
    }
    case Code.float64:
      if (size !== 8) return -1
      to.view.setUint32(at, view.getUint32(start + 4), true)
      to.view.setUint32(at + 4, view.getUint32(start), true)
      return at + 8
    case Code.float32:
      if (size !== 4) return -1
      to.view.setUint32(at, view.getUint32(start), true)
      return at + 4
    case Code.bytes:
      return copyBytes(to, writeInt(to.bytes, at, size), from, start, end)
  }
  return -1
}
