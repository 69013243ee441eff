import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import { masker, maskUrls, resolveReferences, secretsOf, withoutSecrets } from '../../../src/config/references.ts'

const lookup = {
  env: { A: 'one', EMPTY: '', NESTED: '${env:A}', PRICE: '$&' },
  readFile: (path: string): string => {
    if (path === 'secret') return 'from file\n'
    throw Object.assign(new Error('no'), { code: 'ENOENT' })
  },
}

describe('a reference', () => {
  const cases: readonly (readonly [string, string])[] = [
    ['plain', 'plain'],
    ['${env:A}', 'one'],
    ['<${env:A}-${env:A}>', '<one-one>'],
    ['${env:B:-two}', 'two'],
    ['${env:EMPTY:-two}', 'two'],
    ['${env:EMPTY}', ''],
    ['${env:B:-}', ''],
    ['${env:B:-a:-b}', 'a:-b'],
    ['${env:NESTED}', '${env:A}'],
    ['${env:PRICE}', '$&'],
    ['${file:secret}', 'from file'],
    ['$${env:A}', '${env:A}'],
    ['$5 and {x}', '$5 and {x}'],
  ]
  for (const [written, text] of cases) {
    it(`${written} stands for ${JSON.stringify(text)}`, () => {
      const resolved = resolveReferences(written, lookup)
      assert.deepEqual(resolved.problems, [])
      assert.equal(resolved.text, text)
    })
  }
  for (const written of ['${env:B}', '${file:none}', '${A}', '${env:A', '${exec:ls}', '${}'])
    it(`${written} is a problem`, () => assert.equal(resolveReferences(written, lookup).problems.length, 1))
})

describe('a secret', () => {
  it('is blanked in addresses', () => {
    for (const [text, shown] of [
      ['store://u:pw@h:1/x', 'store://u:***@h:1/x'],
      ['store://u:p@w/w@h/x', 'store://u:***@h/x'],
      ['cannot reach store+srv://u:pw@h, sorry', 'cannot reach store+srv://u:***@h, sorry'],
      ['store://h/x?password=pw&a=1', 'store://h/x?password=***&a=1'],
      ['store://u@h:5432/x', 'store://u@h:5432/x'],
    ] as const)
      assert.equal(maskUrls(text), shown)
  })

  it('is blanked wherever it shows, in both spellings', () => {
    const config = { url: 'store://u:a%40bcd@h', sasl: { password: 'hunter22' }, list: [{ apiKey: 'k-123456' }] }
    const mask = masker(secretsOf(config))
    assert.equal(mask('a%40bcd a@bcd hunter22 k-123456 fine'), '*** *** *** *** fine')
    assert.doesNotMatch(JSON.stringify(withoutSecrets(config)), /bcd|hunter|123456/)
  })

  it('never survives, whatever surrounds it', () => {
    const password = fc.stringMatching(/^[A-Za-z0-9!$%&*+_~.-]{8,20}$/)
    fc.assert(
      fc.property(password, fc.string(), fc.string(), (secret, before, after) => {
        const url = `store://user:${encodeURIComponent(secret)}@host/db`
        const mask = masker(secretsOf({ url }))
        assert.ok(!mask(`${before}${secret}${after} ${url}`).includes(secret))
      }),
    )
  })
})
