import assert from 'node:assert/strict'
import { test } from 'node:test'
import { applyLane } from '../../../src/apply/apply.ts'
import type { Batcher, Step } from '../../../src/apply/batcher.ts'
import type { Lane } from '../../../src/connector.ts'
import { Failure } from '../../../src/errors.ts'
import { memoryLog } from '../../support/memory-log.ts'

const batch: Step = {
  kind: 'batch',
  batch: {
    groups: [],
    inOrder: undefined,
    mayMiss: false,
    ordered: () => {
      throw new Error('not asked for')
    },
  },
  advances: [],
}
const rejected = new Failure('ROW_REJECTED', { object: 'orders' })
const schemas = { load: async () => {} }

/** A batcher that plays a script: the steps of each pull. */
function script(pulls: readonly (readonly Step[])[]): { batcher: Batcher; calls: string[] } {
  const calls: string[] = []
  const left = pulls.map((steps) => [...steps])
  let now: Step[] = []
  const batcher: Batcher = {
    wanted: () => [],
    full: false,
    atBarrier: false,
    missing: undefined,
    dropped: { repeats: 0, zombies: 0 },
    applied: 0,
    gone: [],
    fenced: undefined,
    add: () => {
      calls.push('add')
      now = left.shift() ?? now
    },
    next: () => now.shift(),
    pass: () => void calls.push('pass'),
    lost: () => void calls.push('settled'),
    putBack: () => {
      calls.push('put back')
      now.unshift(batch)
      return true
    },
    resume: () => {},
  }
  return { batcher, calls }
}
function laneWith(apply: () => Promise<[]>): Lane {
  // Only `apply` is called.
  return { apply } as unknown as Lane
}

test('a stop finishes the batch in hand and does not begin another', async () => {
  const { batcher, calls } = script([[batch, batch, batch]])
  const stop = new AbortController()
  const lane = laneWith(async () => {
    stop.abort()
    return []
  })
  await applyLane(memoryLog(), lane, batcher, schemas, 10, stop.signal, AbortSignal.timeout(10_000))
  assert.deepEqual(calls, ['add', 'settled'])
})

test('a stop ends the wait for data', async () => {
  const { batcher } = script([])
  const stop = new AbortController()
  const running = applyLane(
    memoryLog(),
    laneWith(async () => []),
    batcher,
    schemas,
    60_000,
    stop.signal,
    AbortSignal.timeout(10_000),
  )
  stop.abort()
  await running
})

test('a rejected batch is tried again when more has come', async () => {
  const { batcher, calls } = script([[batch]])
  const stop = new AbortController()
  let tries = 0
  const lane = laneWith(async () => {
    if (++tries < 3) throw rejected
    stop.abort()
    return []
  })
  await applyLane(memoryLog(), lane, batcher, schemas, 1, stop.signal, AbortSignal.timeout(10_000))
  assert.deepEqual(calls, ['add', 'put back', 'add', 'put back', 'add', 'settled'])
})

test('a rejection that more records cannot change is the lane’s failure', async () => {
  const { batcher } = script([[batch]])
  const whole: Batcher = { ...batcher, putBack: () => false }
  const lane = laneWith(async () => {
    throw rejected
  })
  const signal = AbortSignal.timeout(10_000)
  await assert.rejects(applyLane(memoryLog(), lane, whole, schemas, 1, signal, signal), rejected)
})

test('other failures are not tried again', async () => {
  const { batcher } = script([[batch]])
  const lane = laneWith(async () => {
    throw new Failure('TARGET_DRIFTED')
  })
  const signal = AbortSignal.timeout(10_000)
  await assert.rejects(applyLane(memoryLog(), lane, batcher, schemas, 1, signal, signal), { code: 'TARGET_DRIFTED' })
})

test('a partition that someone else has claimed ends the lane, which is to claim again', async () => {
  const { batcher } = script([])
  const fenced: Batcher = { ...batcher, fenced: { topic: 'orders', partition: 3 } }
  const signal = AbortSignal.timeout(10_000)
  const running = applyLane(
    memoryLog(),
    laneWith(async () => []),
    fenced,
    schemas,
    1,
    signal,
    signal,
  )
  await assert.rejects(running, { code: 'FENCED' })
})
