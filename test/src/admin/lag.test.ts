import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { watermarkTrail } from '../../../src/admin/lag.ts'
import { partitionName, type Checkpoint, type Offset, type Position, type Watermark } from '../../../src/model.ts'
import { positionOf } from '../apply/rows-for-tests.ts'

const ends = (...offsets: readonly number[]): readonly Offset[] =>
  offsets.map((offset, partition) => ({ topic: 't', partition, offset }))
const mark = (position: number, full: boolean, vector: readonly Offset[], epoch = 1): Watermark => {
  const at = positionOf(position)
  return { kind: 'watermark', epoch, position: at, published: at, committedAt: position * 1000, full, ends: vector }
}
const checkpoints = (...offsets: readonly number[]): readonly Checkpoint[] =>
  ends(...offsets).map((at) => ({
    ...at,
    mark: { position: '' as Position, seq: 0 },
    captureEpoch: 1,
    claim: '',
    loose: '' as Position,
  }))

test('a watermark is applied once every partition it names has reached its end', () => {
  const trail = watermarkTrail()
  trail.add(mark(5, true, ends(10, 20)))
  assert.equal(trail.applied(checkpoints(10, 19)), undefined)
  assert.equal(trail.applied(checkpoints(9, 20)), undefined)
  assert.equal(trail.applied(checkpoints(10)), undefined)
  assert.deepEqual(trail.applied(checkpoints(10, 20)), { position: positionOf(5), committedAt: 5000 })
})

test('a watermark that names what changed stands on the last full one', () => {
  const trail = watermarkTrail()
  trail.add(mark(5, true, ends(10, 20)))
  trail.add(mark(6, false, ends(12)))
  assert.equal(trail.applied(checkpoints(12, 19)), undefined)
  assert.equal(trail.applied(checkpoints(12, 20))?.position, positionOf(6))
})

test('without a full vector nothing is proved', () => {
  const trail = watermarkTrail()
  trail.add(mark(5, false, ends(1)))
  assert.equal(trail.latest, undefined)
  assert.equal(trail.applied(checkpoints(100, 100)), undefined)
  assert.equal(trail.stands(ends(0, 0), checkpoints(100, 100), positionOf(4)), false)
})

test('a successor of the capture begins anew with a full vector, an older one is not heard', () => {
  const trail = watermarkTrail()
  trail.add(mark(5, true, ends(10, 20), 2))
  trail.add(mark(9, true, ends(1, 1), 1))
  assert.equal(trail.latest?.position, positionOf(5))
  trail.add(mark(6, false, ends(12), 3))
  assert.equal(trail.latest?.position, positionOf(5), 'the vector before this epoch is not known to hold')
  trail.add(mark(7, true, ends(12, 25), 3))
  assert.equal(trail.latest?.position, positionOf(7))
  trail.add({ ...mark(7, true, ends(0, 0), 3), committedAt: 1 })
  assert.equal(trail.latest?.committedAt, 7000)
  trail.add(mark(6, true, ends(0, 0), 3))
  assert.equal(trail.applied(checkpoints(12, 24))?.position, positionOf(5))
})

test('a full vector counts also where its own position proves nothing new', () => {
  const trail = watermarkTrail()
  trail.add(mark(8, true, ends(10, 20), 1))
  trail.add(mark(7, true, ends(14, 30), 2))
  assert.equal(trail.latest?.position, positionOf(8))
  trail.add(mark(9, false, ends(15), 2))
  assert.equal(trail.applied(checkpoints(15, 29))?.position, positionOf(8))
  assert.equal(trail.applied(checkpoints(15, 30))?.position, positionOf(9))
})

test('after records were missed, what changed since an unknown vector proves nothing', () => {
  const trail = watermarkTrail()
  trail.add(mark(5, true, ends(10, 20)))
  trail.restart(ends(10, 20)) // and a full vector with (10, 40) is missed
  trail.add(mark(7, false, ends(11)))
  assert.equal(trail.applied(checkpoints(11, 20))?.position, positionOf(5))
  trail.add(mark(8, true, ends(11, 40)))
  assert.equal(trail.applied(checkpoints(11, 40))?.position, positionOf(8))
})

test('watermarks of before a table was left out are applied without it', () => {
  const trail = watermarkTrail()
  trail.restart(ends(0))
  for (let n = 1; n < 200; n++) trail.add(mark(n, n % 60 === 1, ends(n, 100 + n)))
  assert.equal(trail.applied(checkpoints(150))?.position, positionOf(150))
  trail.add(mark(200, true, ends(200), 2))
  assert.equal(trail.applied(checkpoints(200))?.position, positionOf(200))
})

test('partitions stand at a position by their mark, or by a watermark at or after it', () => {
  const trail = watermarkTrail()
  const at = ends(0, 0)
  const [left, right] = checkpoints(10, 19)
  if (left === undefined || right === undefined) throw new Error('no checkpoints')
  assert.equal(trail.stands(at, [left, right], positionOf(5)), false)
  const marked = (checkpoint: Checkpoint, n: number): Checkpoint => {
    return { ...checkpoint, mark: { position: positionOf(n), seq: 0 } }
  }
  assert.equal(trail.stands(at, [marked(left, 5), marked(right, 6)], positionOf(5)), true)
  assert.equal(trail.stands(at, [marked(left, 5), marked(right, 4)], positionOf(5)), false)
  trail.add(mark(4, true, ends(10, 19)))
  assert.equal(trail.stands(at, [left, right], positionOf(5)), false, 'a watermark before it says nothing')
  trail.add(mark(5, false, ends(10, 20)))
  assert.equal(trail.stands(at, [left, right], positionOf(5)), false)
  assert.equal(trail.stands(at, [left, marked(right, 5)], positionOf(5)), true)
  assert.equal(trail.stands(at, checkpoints(10, 20), positionOf(5)), true)
  assert.equal(trail.stands(at, checkpoints(10), positionOf(5)), false, 'a partition without a checkpoint')
})

test('however many watermarks come while the target is behind, never more is proved than was written', () => {
  const count = 3
  const step = fc.record({
    grow: fc.array(fc.nat(3), { minLength: count, maxLength: count }),
    full: fc.boolean(),
    repeat: fc.integer({ min: 1, max: 700 }),
    /** How far the target goes towards the ends, in percent. */
    apply: fc.array(fc.nat(100), { minLength: count, maxLength: count }),
    look: fc.boolean(),
  })
  fc.assert(
    fc.property(fc.array(step, { minLength: 1, maxLength: 12 }), (steps) => {
      const trail = watermarkTrail()
      const written: { readonly position: Position; readonly ends: readonly number[] }[] = []
      const end = Array.from({ length: count }, () => 0)
      const base = [...end]
      const reached = [...end]
      let position = 0
      let proved = -1
      for (const { grow, full, repeat, apply, look } of steps) {
        for (let n = 0; n < repeat; n++) {
          grow.forEach((more, p) => (end[p] = (end[p] ?? 0) + (n % 3 === p ? more : 0)))
          const whole = full || position === 0
          const named = ends(...end).filter(({ partition, offset }) => whole || offset !== base[partition])
          if (whole) end.forEach((offset, p) => (base[p] = offset))
          trail.add(mark(++position, whole, named))
          written.push({ position: positionOf(position), ends: [...end] })
        }
        apply.forEach((percent, p) => {
          const from = reached[p] ?? 0
          reached[p] = from + Math.floor((((end[p] ?? 0) - from) * percent) / 100)
        })
        if (!look) continue
        const proof = trail.applied(checkpoints(...reached))
        const allowed = written.findLastIndex((watermark) => watermark.ends.every((e, p) => (reached[p] ?? 0) >= e))
        const found = written.findIndex((watermark) => watermark.position === proof?.position)
        assert.ok(found <= allowed, `${found} is proved, ${allowed} is what is applied`)
        assert.ok(found >= proved, 'a proof is never taken back')
        proved = found
      }
      const last = trail.applied(checkpoints(...end))
      assert.equal(last?.position, written.at(-1)?.position, 'all applied: the newest is proved')
    }),
    { numRuns: 60 },
  )
})

test('while the target is behind, the proof is coarser, by little', () => {
  const trail = watermarkTrail()
  trail.add(mark(1, true, ends(1)))
  for (let n = 2; n <= 5000; n++) trail.add(mark(n, false, ends(n)))
  for (const reached of [100, 2500, 4000, 5000]) {
    const proof = trail.applied(checkpoints(reached))
    const behind = reached - Number.parseInt(proof?.position ?? '0', 16)
    assert.ok(behind >= 0 && behind <= 16, `${behind} behind at ${reached}`)
  }
  for (let n = 5001; n < 5020; n++) {
    trail.add(mark(n, false, ends(n)))
    const proof = trail.applied(checkpoints(n - 2))
    if (n > 5010) assert.equal(proof?.position, positionOf(n - 2), 'close behind it is exact again')
  }
})

test('what is kept while the target is behind is bounded', () => {
  const trail = watermarkTrail()
  trail.add(mark(1, true, ends(1)))
  const before = process.memoryUsage().heapUsed
  for (let n = 2; n < 200_000; n++) trail.add(mark(n, false, ends(n)))
  assert.ok(process.memoryUsage().heapUsed - before < 30e6)
  assert.equal(trail.applied(checkpoints(0)), undefined)
  assert.equal(trail.applied(checkpoints(199_999).map((at) => ({ ...at })))?.position, positionOf(199_999))
  assert.equal(partitionName({ topic: 't', partition: 0 }), 't/0')
})
