import assert from 'node:assert/strict'
import { test } from 'node:test'
import { pino } from 'pino'
import { memoryStore, type StateStore } from '../../src/coordinate/state-store.ts'
import type { Position } from '../../src/model.ts'
import { readRun, runRecorder, type RunRecord } from '../../src/run-record.ts'

const never = new AbortController().signal
const silent = pino({ level: 'silent' })
const at = (place: number): RunRecord => ({
  applied: { position: String(place) as Position, committedAt: place, offsets: place },
})

test('a write whose answer is lost is gone on from, and what a successor wrote is left alone', async () => {
  const store = memoryStore()
  let lost: 'before' | 'after' | undefined
  const flaky: StateStore = {
    ...store,
    async put(key, value, expected, signal) {
      const answer = lost
      lost = undefined
      if (answer === 'before') throw new Error('refused')
      const revision = await store.put(key, value, expected, signal)
      if (answer === 'after') throw new Error('cut')
      return revision
    },
  }
  const first = await runRecorder(flaky, silent, never)
  for (const [place, answer] of [
    [1, undefined],
    [2, 'before'],
    [3, undefined],
    [4, 'after'],
    [5, undefined],
  ] as const) {
    lost = answer
    await first.keep(at(place), never)
  }
  assert.deepEqual(await readRun(store, never), at(5))
  const successor = await runRecorder(store, silent, never)
  await successor.keep(at(10), never)
  for (const answer of ['after', undefined] as const) {
    lost = answer
    await first.keep(at(6), never)
    await first.keep(at(7), never)
  }
  assert.deepEqual(await readRun(store, never), at(10))
})
