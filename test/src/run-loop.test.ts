import assert from 'node:assert/strict'
import { test } from 'node:test'
import { codes, Failure, type ErrorCode } from '../../src/errors.ts'
import type { Logger } from '../../src/logger.ts'
import { runLoop } from '../../src/run-loop.ts'
import { noLeaks } from '../support/leaks.ts'

noLeaks()

function listening(): { readonly log: Logger; readonly lines: { readonly level: string; readonly again: unknown }[] } {
  const lines: { level: string; again: unknown }[] = []
  const at = (level: string) => (facts: object) => void lines.push({ level, again: Object(facts).again })
  return { lines, log: { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') } }
}
const failsTimes = (times: number, code: ErrorCode = 'SERVER_UNREACHABLE') => {
  let calls = 0
  return {
    calls: () => calls,
    work: async (): Promise<string> => {
      if (++calls <= times) throw new Failure(code)
      return 'done'
    },
  }
}

test('a retry waits twice as long as the one before, up to the most, and less by chance', async () => {
  const { log, lines } = listening()
  const { work } = failsTimes(5)
  const pace = { first: 2, most: 12, random: () => 1 }
  assert.equal(await runLoop('t', log, AbortSignal.timeout(5000), work, pace), 'done')
  assert.deepEqual(
    lines.map(({ again }) => again),
    [2, 4, 8, 12, 12],
  )
  const least = listening()
  await runLoop('t', least.log, AbortSignal.timeout(5000), failsTimes(3).work, { ...pace, random: () => 0 })
  assert.deepEqual(
    least.lines.map(({ again }) => again),
    [1, 2, 4],
  )
})

test('a try that got somewhere is followed by the next as soon as the first, and told as loud as before', async () => {
  const { log, lines } = listening()
  let calls = 0
  const work = async (_: AbortSignal, progressed: () => void): Promise<string> => {
    if (++calls > 6) return 'done'
    if (calls === 3 || calls === 5) progressed()
    throw new Failure('SERVER_UNREACHABLE')
  }
  await runLoop('t', log, AbortSignal.timeout(5000), work, { first: 2, most: 100, random: () => 1 })
  assert.deepEqual(
    lines.map(({ again }) => again),
    [2, 4, 2, 4, 2, 4],
  )
  assert.equal(lines.filter(({ level }) => level === 'warn').length, 4)
})

test('it is told louder from the third time on', async () => {
  const { log, lines } = listening()
  await runLoop('t', log, AbortSignal.timeout(5000), failsTimes(4).work, { first: 1, most: 1 })
  assert.deepEqual(
    lines.map(({ level }) => level),
    ['info', 'info', 'warn', 'warn'],
  )
})

test('only what a retry can help is tried again, by the table of codes', async () => {
  for (const code of Object.keys(codes) as ErrorCode[]) {
    const { work, calls } = failsTimes(1, code)
    const retried: string[] = []
    const options = { first: 1, most: 1, onRetry: (failure: Failure) => retried.push(failure.code) }
    const result = runLoop('t', listening().log, AbortSignal.timeout(5000), work, options)
    if (codes[code].policy === 'retry') {
      assert.equal(await result, 'done')
      assert.deepEqual(retried, [code])
    } else {
      await assert.rejects(result, { code })
      assert.equal(calls(), 1)
    }
  }
})

test('an error that is none of ours is a defect, and ends it', async () => {
  const work = async (): Promise<void> => {
    throw new TypeError('x is not a function')
  }
  await assert.rejects(runLoop('t', listening().log, AbortSignal.timeout(5000), work), (error) => {
    assert.ok(error instanceof Failure && error.code === 'BUG')
    assert.match(error.message, /x is not a function/)
    return true
  })
})

test('after the signal nothing is tried again, neither while working nor while waiting', async () => {
  for (const when of ['working', 'waiting'] as const) {
    const end = new AbortController()
    let calls = 0
    const work = async (): Promise<void> => {
      calls++
      if (when === 'working') end.abort(new Failure('INTERRUPTED'))
      else setTimeout(() => end.abort(new Failure('INTERRUPTED')), 5)
      throw new Failure('SERVER_UNREACHABLE')
    }
    const began = performance.now()
    const result = runLoop('t', listening().log, end.signal, work, { first: 5000, most: 5000 })
    await assert.rejects(result, when === 'working' ? { code: 'INTERRUPTED' } : { name: 'AbortError' })
    assert.equal(calls, 1)
    assert.ok(performance.now() - began < 2000)
  }
})
