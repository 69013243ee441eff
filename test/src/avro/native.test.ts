import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { nativeToText, textToNative } from '../../../src/avro/native.ts'

function bits(form: 'float32' | 'float64', text: string): string | undefined {
  return textToNative(form, text)?.toString('hex')
}
function real(value: number, size: 4 | 8): string {
  const bytes = Buffer.alloc(size)
  if (size === 4) bytes.writeFloatBE(value)
  else bytes.writeDoubleBE(value)
  return bytes.toString('hex')
}

test('64-bit integers survive text to native and back over their whole range', () => {
  const edges = [0n, 999999999999999n, 1000000000000000n, 9007199254740993n, 2n ** 63n - 1n, -(2n ** 63n), -(2n ** 32n)]
  const any = fc.oneof(fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }), fc.constantFrom(...edges))
  fc.assert(
    fc.property(any, (value) => {
      const native = textToNative('int64', String(value))
      assert.equal(native?.readBigInt64BE(), value)
      assert.equal(nativeToText('int64', native), String(value))
    }),
    { numRuns: 1000, examples: edges.map((edge) => [edge]) },
  )
})

test('doubles survive to the bit, from the shortest digits and from 17', () => {
  fc.assert(
    fc.property(fc.double({ noNaN: true }), (value) => {
      const shortest = Object.is(value, -0) ? '-0' : String(value)
      assert.equal(bits('float64', shortest), real(value, 8))
      if (Number.isFinite(value) && value !== 0) assert.equal(bits('float64', value.toExponential(16)), real(value, 8))
      assert.equal(bits('float64', nativeToText('float64', Buffer.from(real(value, 8), 'hex'))), real(value, 8))
    }),
    {
      numRuns: 2000,
      examples: [[5e-324], [1.7976931348623157e308], [2.2250738585072014e-308], [9007199254740992], [-0]],
    },
  )
})

test('floats survive to the bit, printed with nine digits or the shortest', () => {
  fc.assert(
    fc.property(fc.float({ noNaN: true }), (value) => {
      const native = Buffer.from(real(value, 4), 'hex')
      if (Number.isFinite(value))
        assert.equal(bits('float32', Object.is(value, -0) ? '-0' : value.toPrecision(9)), real(value, 4))
      assert.equal(bits('float32', nativeToText('float32', native)), real(value, 4))
    }),
    { numRuns: 2000, examples: [[1.401298464324817e-45], [3.4028234663852886e38], [1.1754943508222875e-38], [-0]] },
  )
})

test('a float is rounded once, not by way of a double', () => {
  // 1 + 2^-24 lies between 1 and the next float; the digits after it are lost in a double
  assert.equal(bits('float32', '1.000000059604644775390625'), '3f800000')
  assert.equal(bits('float32', '1.0000000596046447753906251'), '3f800001')
  assert.equal(bits('float32', '1.0000000596046447753906249'), '3f800000')
  assert.equal(bits('float32', '-1.0000000596046447753906251'), 'bf800001')
  // the same below the smallest normal float, at one and a half of 2^-149
  const middle = '2.10194769648722560638559437493487419692039291281477365763560242'
  assert.equal(bits('float32', `${middle}e-45`), '00000001')
  assert.equal(bits('float32', `${middle}6e-45`), '00000002')
})

test('numbers print as the sources do', () => {
  const doubles = [
    '1e+15',
    '123456789012345',
    '1e-05',
    '0.0001',
    '1.5',
    '100',
    '-0',
    '0',
    'NaN',
    'Infinity',
    '-Infinity',
    '1.2345678901234568e+17',
    '5e-324',
    // An engine's own shortest digits stand on the middle between two doubles.
    '9.999999999999999e+22',
    '2.5081261030785712e+16',
  ]
  for (const text of doubles)
    assert.equal(nativeToText('float64', textToNative('float64', text) ?? Buffer.alloc(0)), text)
  // The last three: the middle between two floats, and of two as near the even one.
  const middles = ['6.0877232e+07', '3.8876642e+06', '157417.62']
  const floats = ['1e+06', '100000', '0.1', '3.4028235e+38', '1e-45', '16777216', '1.6777216e+07', ...middles]
  const printed = ['1e+06', '100000', '0.1', '3.4028235e+38', '1e-45', '1.6777216e+07', '1.6777216e+07', ...middles]
  floats.forEach((text, i) =>
    assert.equal(nativeToText('float32', textToNative('float32', text) ?? Buffer.alloc(0)), printed[i]),
  )
})

test('booleans, small integers, bytes and text go both ways', () => {
  for (const [form, texts] of [
    ['bool', ['t', 'f']],
    ['int16', ['-32768', '32767', '0']],
    ['int32', ['-2147483648', '2147483647']],
    ['bytes', ['\\x', '\\x00ff7e']],
    ['text', ['', 'größer €']],
  ] as const)
    for (const text of texts) assert.equal(nativeToText(form, textToNative(form, text) ?? Buffer.alloc(0)), text)
  assert.equal(textToNative('bytes', '\\xAb')?.toString('hex'), 'ab')
  for (const [form, text] of [
    ['bool', 'true'],
    ['int16', '32768'],
    ['int64', ''],
    ['bytes', 'ab'],
    ['float64', '1,5'],
  ] as const)
    assert.equal(textToNative(form, text), undefined)
})
