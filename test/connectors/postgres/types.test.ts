import assert from 'node:assert/strict'
import { test } from 'node:test'
import { cellText, formOf, nativeOids } from '../../../connectors/postgres/types.ts'
import type { Form } from '../../../src/model.ts'
import { Tag } from '../../../src/rows.ts'

test('native cells print as the server reads them', () => {
  const cells: readonly (readonly [Form, string, string])[] = [
    ['bool', '01', 't'],
    ['bool', '00', 'f'],
    ['int16', '8000', '-32768'],
    ['int32', 'ffffffff', '-1'],
    ['int64', '7fffffffffffffff', '9223372036854775807'],
    ['float32', '3dcccccd', '0.1'],
    ['float64', '8000000000000000', '-0'],
    ['float64', '7ff8000000000000', 'NaN'],
    ['float64', 'fff0000000000000', '-Infinity'],
    ['bytes', '00ff', '\\x00ff'],
    ['text', 'c3a9', 'é'],
  ]
  for (const [form, hex, text] of cells)
    assert.equal(cellText(form, { tag: Tag.native, bytes: Buffer.from(hex, 'hex') }), text)
  assert.equal(cellText('int32', { tag: Tag.text, bytes: Buffer.from('12') }), '12')
})

test('a form and its native type belong together', () => {
  for (const form of ['bool', 'int16', 'int32', 'int64', 'float32', 'float64', 'bytes', 'text'] as const)
    assert.equal(formOf(nativeOids[form]), form)
  assert.equal(formOf(26), 'int64')
  assert.equal(formOf(1700), 'text')
})
