import assert from 'node:assert/strict'
import { test } from 'node:test'
import { hash32, hashRing } from '../../src/hash-ring.ts'

const keyOf = (i: number): Uint8Array => Buffer.from(`key-${i}`)
const of = (n: number, key: Uint8Array): number => hashRing(n).partition(key, 0, key.length)

test('the hash is MurmurHash3, so that others can compute it', () => {
  const vectors: Record<string, number> = {
    '': 0,
    a: 0x3c2569b2,
    ab: 0x9bbfd75f,
    abc: 0xb3dd93fa,
    abcd: 0x43ed676a,
    'The quick brown fox jumps over the lazy dog': 0x2e4ff723,
  }
  for (const [text, hash] of Object.entries(vectors))
    assert.equal(hash32(Buffer.from(text), 0, text.length), hash, text)
  const high = Buffer.from('fffefdfcfb', 'hex')
  assert.equal(hash32(high, 0, 5), 0x2abf9cbb)
})

test('only the bytes of the key count', () => {
  const bytes = Buffer.from('..key-7..')
  assert.equal(hashRing(8).partition(bytes, 2, 7), of(8, keyOf(7)))
})

test('a key stays where it is for ever', () => {
  const where = (n: number): string => Array.from({ length: 24 }, (_, i) => of(n, keyOf(i))).join(' ')
  const pinned: Record<number, string> = {
    2: '1 1 1 0 0 0 0 0 1 1 0 0 1 1 0 1 1 0 0 1 1 1 0 1',
    8: '2 6 2 6 4 0 0 0 7 7 3 0 6 5 7 1 5 6 7 3 1 7 4 1',
    100: '62 80 80 76 53 59 17 76 78 20 86 77 46 47 24 50 87 46 96 54 84 72 28 83',
  }
  for (const [n, partitions] of Object.entries(pinned))
    assert.equal(where(Number(n)), partitions, 'moving keys breaks running pipelines: this needs a repartition')
})

test('one more partition takes its share, and nothing else moves', () => {
  for (const n of [1, 3, 8, 31]) {
    let moved = 0
    for (let i = 0; i < 20_000; i++) {
      const before = of(n, keyOf(i))
      const after = of(n + 1, keyOf(i))
      if (before === after) continue
      assert.equal(after, n)
      moved++
    }
    const share = moved / 20_000
    assert.ok(share > 0.7 / (n + 1) && share < 1.3 / (n + 1), `${n} to ${n + 1}: ${share}`)
  }
})

test('partitions get about the same number of keys', () => {
  for (const n of [2, 8, 64]) {
    const counts = Array.from({ length: n }, () => 0)
    for (let i = 0; i < n * 2_000; i++) {
      const partition = of(n, keyOf(i))
      counts[partition] = (counts[partition] ?? 0) + 1
    }
    assert.ok(Math.min(...counts) > 1_500 && Math.max(...counts) < 2_600, `${n}: ${counts.join(' ')}`)
  }
})

test('a number of partitions that cannot be is refused', () => {
  for (const n of [0, -1, 1.5, NaN, 70_000]) assert.throws(() => hashRing(n), RangeError)
})
