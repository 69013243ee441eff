import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { indexText, plainText } from '../../../connectors/postgres/definition-text.ts'

const same: readonly (readonly [string, string])[] = [
  [
    `CHECK (((s)::text = ANY ((ARRAY['a'::character varying, 'b'::character varying(10)])::text[])))`,
    `CHECK (((s)::text = ANY (ARRAY[('a'::character varying)::text, ('b'::character varying)::text])))`,
  ],
  [`('x'::character varying)::text`, `'x'::text`],
  [`((a > 0))`, `(a > 0)`],
]
const apart: readonly (readonly [string, string])[] = [
  [`((a OR b) AND c)`, `(a OR (b AND c))`],
  [`(a)::integer`, `a`],
  [`'a ::text b'::text`, `'a b'::text`],
  [`"a b"`, `a b`],
  [`(a)::text`, `(a)::texts`],
  [`f(a, (b, c))`, `f((a, b), c)`],
  [`a[1]`, `a(1)`],
  [`'a''b'`, `'a' 'b'`],
  [`E'\\\\('`, `E'\\\\'`],
]

describe('definitions as text', () => {
  for (const [one, other] of same)
    test(`are the same: ${one} and ${other}`, () => assert.equal(plainText(one), plainText(other)))
  for (const [one, other] of apart)
    test(`are not the same: ${one} and ${other}`, () => assert.notEqual(plainText(one), plainText(other)))

  test('an index, in its parts', () => {
    const using = `btree (a DESC, lower((b)::text) text_pattern_ops, ((c ->> 'x)'::text))) INCLUDE (e, d) NULLS NOT DISTINCT WITH (fillfactor='70') WHERE (a > 0)`
    assert.deepEqual(indexText(using), {
      method: 'btree',
      columns: ['a DESC', 'lower b text_pattern_ops', `(c ->> 'x)')`],
      include: 'd, e',
      nulls: 'NULLS NOT DISTINCT',
      options: `fillfactor = '70'`,
      where: '(a > 0)',
    })
  })

  test('whatever stands in them, nothing is thrown or read without end', () => {
    const word = fc.constantFrom('(', ')', '[', ']', `'`, `"`, '::', '::text', 'ARRAY', 'a', ' ', ',', '\\', 'é', '\n')
    fc.assert(
      fc.property(fc.array(fc.oneof(word, fc.string())), (words) => {
        const text = words.join('')
        assert.equal(typeof plainText(text), 'string')
        indexText(text)
      }),
    )
  })
})
