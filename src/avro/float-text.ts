/** Decimal text to floats and back, to the bit, as plain sources print them: shortest digits, `NaN`, `Infinity`, `-Infinity`, `-0`. */

/** Where `parseFloat64` and `parseFloat32` leave the value. */
export const float: Float64Array = new Float64Array(1)
const floatWords = new Int32Array(float.buffer)
const floatBits = new BigUint64Array(float.buffer)
const single = new Float32Array(1)
const singleBits = new Int32Array(single.buffer)
const powers = Float64Array.from({ length: 23 }, (_, i) => Number(`1e${i}`))
/** Digits without their point as a number, and the power of ten they are to be multiplied with. */
let mantissa = 0
let scale = 0
let negative = false

/** False if the text is none, or does not fit. */
export function parseFloat64(bytes: Buffer, start: number, end: number): boolean {
  if (!scan(bytes, start, end)) return special(bytes, start, end)
  const value = magnitude(bytes, start, end)
  if (value === Infinity || (value === 0 && mantissa !== 0)) return false
  float[0] = negative ? -value : value
  return true
}

/** The same for 32 bits, rounded once: the nearest double may lie exactly between two floats where the text does not. */
export function parseFloat32(bytes: Buffer, start: number, end: number): boolean {
  if (!scan(bytes, start, end)) return special(bytes, start, end)
  const value = magnitude(bytes, start, end)
  let rounded = Math.fround(value)
  if (rounded !== value) {
    float[0] = value
    if (((floatWords[0] as number) & 0x0fffffff) === 0) rounded = between(bytes, start, end, value, rounded)
  }
  if (rounded === Infinity || (rounded === 0 && mantissa !== 0)) return false
  float[0] = negative ? -rounded : rounded
  return true
}

/** `Buffer.latin1Slice`, which the types leave out; a third of the price of `toString`. */
function latin1(bytes: Buffer, start: number, end: number): string {
  return (bytes as Buffer & { latin1Slice(start: number, end: number): string }).latin1Slice(start, end)
}

/** Reads sign, digits, point and exponent; false if there is anything else. */
function scan(bytes: Buffer, start: number, end: number): boolean {
  let at = start
  negative = bytes[at] === 0x2d
  if (negative) at++
  const first = at
  let value = 0
  let point = -1
  for (; at < end; at++) {
    const digit = (bytes[at] as number) - 48
    if (digit >= 0 && digit <= 9) value = value * 10 + digit
    else if (digit === -2 && point < 0) point = at
    else break
  }
  if (at - first === (point < 0 ? 0 : 1)) return false
  mantissa = value
  scale = point < 0 ? 0 : point + 1 - at
  return at === end || scanExponent(bytes, at, end)
}

function scanExponent(bytes: Buffer, start: number, end: number): boolean {
  if (((bytes[start] as number) | 0x20) !== 0x65) return false
  const minus = bytes[start + 1] === 0x2d
  let at = minus || bytes[start + 1] === 0x2b ? start + 2 : start + 1
  if (at >= end || end - at > 5) return false
  let exponent = 0
  for (; at < end; at++) {
    const digit = (bytes[at] as number) - 48
    if (digit < 0 || digit > 9) return false
    exponent = exponent * 10 + digit
  }
  scale += minus ? -exponent : exponent
  return true
}

/** One operation on two exact doubles is rounded correctly; all else is the engine's work. */
function magnitude(bytes: Buffer, start: number, end: number): number {
  if (mantissa <= 9007199254740991) {
    if (scale === 0) return mantissa
    if (scale < 0 && scale >= -22) return mantissa / (powers[-scale] as number)
    if (scale > 0 && scale <= 22) return mantissa * (powers[scale] as number)
  }
  return Number(latin1(bytes, negative ? start + 1 : start, end))
}

function special(bytes: Buffer, start: number, end: number): boolean {
  if (end - start > 9) return false
  const text = latin1(bytes, start, end)
  if (text === 'NaN') float[0] = Number.NaN
  else if (text === 'Infinity') float[0] = Infinity
  else if (text === '-Infinity') float[0] = -Infinity
  else return false
  return true
}

/** The float nearest to the text, when its nearest double may be the middle of two floats. */
function between(bytes: Buffer, start: number, end: number, value: number, rounded: number): number {
  single[0] = rounded
  singleBits[0] = (singleBits[0] as number) + (rounded < value ? 1 : -1)
  const other = single[0]
  if (Math.abs(other - value) !== Math.abs(rounded - value)) return rounded
  const side = compareDecimal(latin1(bytes, negative ? start + 1 : start, end), value)
  if (side === 0) return rounded
  return side > 0 ? Math.max(other, rounded) : Math.min(other, rounded)
}

/** Sign of (decimal text - double), both positive, by whole numbers. */
function compareDecimal(text: string, value: number): number {
  const digits = /^(\d*)\.?(\d*)/.exec(text)
  let left = BigInt(`${digits?.[1] ?? ''}${digits?.[2] ?? ''}`)
  let right = 1n
  if (scale > 0) left *= 10n ** BigInt(scale)
  else right *= 10n ** BigInt(-scale)
  let exponent = 0
  let whole = value
  while (!Number.isInteger(whole)) {
    whole *= 2
    exponent++
  }
  left <<= BigInt(exponent)
  right *= BigInt(whole)
  return left < right ? -1 : left > right ? 1 : 0
}

/** Shortest digits that read back to the same bits, as plain sources choose them. */
export function printFloat(value: number, bits: 32 | 64): string {
  if (Number.isNaN(value)) return 'NaN'
  if (!Number.isFinite(value)) return value > 0 ? 'Infinity' : '-Infinity'
  if (value === 0) return Object.is(value, -0) ? '-0' : '0'
  const [digits, exponent] = shortest(Math.abs(value), bits)
  const sign = value < 0 ? '-' : ''
  if (exponent < -4 || exponent >= (bits === 64 ? 15 : 6)) {
    const tail = digits.length > 1 ? `.${digits.slice(1)}` : ''
    const size = String(Math.abs(exponent)).padStart(2, '0')
    return `${sign}${digits[0]}${tail}e${exponent < 0 ? '-' : '+'}${size}`
  }
  if (exponent < 0) return `${sign}0.${'0'.repeat(-exponent - 1)}${digits}`
  if (digits.length <= exponent + 1) return sign + digits.padEnd(exponent + 1, '0')
  return `${sign}${digits.slice(0, exponent + 1)}.${digits.slice(exponent + 1)}`
}

/** The shortest decimal strictly between the middles to both neighbours, and of these the nearest; from one as near as another the even one (Ryu, bounds not
 *  accepted: an engine's own printing accepts them, and is now and then a digit shorter). Digits, and the exponent of the first. */
function shortest(value: number, bits: 32 | 64): [digits: string, exponent: number] {
  const stored = bits === 64 ? 52 : 23
  float[0] = value
  single[0] = value
  const pattern = bits === 64 ? (floatBits[0] ?? 0n) : BigInt(singleBits[0] ?? 0)
  const fraction = BigInt.asUintN(stored, pattern)
  const biased = Number(pattern >> BigInt(stored))
  const whole = biased === 0 ? fraction : fraction | (1n << BigInt(stored))
  // In quarters of the last place; below a power of two the neighbour is half as far.
  const twos = Math.max(biased, 1) - (bits === 64 ? 1075 : 150) - 2
  const scale = twos >= 0 ? 1n << BigInt(twos) : 5n ** BigInt(-twos)
  let at = 4n * whole * scale
  let above = (4n * whole + 2n) * scale - 1n
  let below = (4n * whole - (fraction !== 0n || biased <= 1 ? 2n : 1n)) * scale
  let tens = Math.min(twos, 0)
  let removed = 0n
  let exact = true
  while (above / 10n > below / 10n) {
    exact &&= removed === 0n
    removed = at % 10n
    at /= 10n
    above /= 10n
    below /= 10n
    tens++
  }
  const up = at === below || removed > 5n || (removed === 5n && !(exact && at % 2n === 0n))
  const digits = String(up ? at + 1n : at)
  return [digits.replace(/0+$/, ''), digits.length - 1 + tens]
}
