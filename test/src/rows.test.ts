import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { Output } from '../../src/output.ts'
import { appendImage, cellLength, hasAbsentCell, readImage, rowsOf, Tag, type Cell } from '../../src/rows.ts'

const bytes = fc.uint8Array({ maxLength: 40 })
const cell: fc.Arbitrary<Cell> = fc.oneof(
  fc.constant(null),
  fc.constant(undefined),
  fc.record({ tag: fc.constantFrom(Tag.text, Tag.native), bytes }),
)
const image = fc.array(cell, { minLength: 1, maxLength: 12 })
const plain = (cells: readonly Cell[]): unknown =>
  cells.map((one) => (one ? { tag: one.tag, hex: [...one.bytes] } : one))

test('an image reads as it was written, wherever it lies', () => {
  fc.assert(
    fc.property(fc.array(image, { minLength: 1, maxLength: 5 }), fc.nat(7), (images, before) => {
      const out = new Output(4)
      out.reserve(before)
      out.at = before
      const starts = images.map((cells) => {
        const start = out.at
        appendImage(out, cells)
        return start
      })
      images.forEach((cells, i) => {
        const start = starts[i] ?? 0
        assert.deepEqual(plain(readImage(out.bytes, start, starts[i + 1] ?? out.at)), plain(cells))
        assert.equal(hasAbsentCell(out.bytes, start), cells.includes(undefined))
      })
    }),
  )
})

test('rows keep their order; no image at all is not an image without cells', () => {
  fc.assert(
    fc.property(fc.array(fc.oneof(image, fc.constant([]))), (images) => {
      const rows = rowsOf(images)
      assert.equal(rows.count, images.length)
      images.forEach((cells, i) => {
        assert.deepEqual(plain(readImage(rows.bytes, rows.starts[i] ?? 0, rows.starts[i + 1] ?? 0)), plain(cells))
      })
    }),
  )
})

test('absent, null, and empty text are three things', () => {
  const { bytes, starts } = rowsOf([[undefined, null, { tag: Tag.text, bytes: Buffer.of() }]])
  const [absent, none, empty] = readImage(bytes, 0, starts[1] ?? 0)
  assert.deepEqual([absent, none, empty && empty.bytes.length], [undefined, null, 0])
})

test('lengths are read as 32 bits with a sign, the largest too', () => {
  for (const length of [0, 1, 255, 256, 65_536, 2 ** 31 - 1, -1]) {
    const four = Buffer.alloc(4)
    four.writeInt32BE(length)
    assert.equal(cellLength(four, 0), length)
  }
})

test('bytes that are no image are refused, not misread', () => {
  const { bytes, starts } = rowsOf([[null, { tag: Tag.text, bytes: Buffer.from('abc') }]])
  const end = starts[1] ?? 0
  assert.throws(() => readImage(bytes, 0, end - 1), RangeError)
  const other = Buffer.from(bytes)
  other[2] = 0x78
  assert.throws(() => readImage(other, 0, end), /cell tag 120/)
})
