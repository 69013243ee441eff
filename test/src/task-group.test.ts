import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'node:test'
import { Failure } from '../../src/errors.ts'
import { silent } from '../../src/logger.ts'
import { taskGroup } from '../../src/task-group.ts'
import { noLeaks } from '../support/leaks.ts'

noLeaks()

function group() {
  const stop = new AbortController()
  const hard = new AbortController()
  const troubles: (string | undefined)[] = []
  const tasks = taskGroup(silent, {
    stop: stop.signal,
    signal: hard.signal,
    onTrouble: (failure) => void troubles.push(failure?.code),
  })
  const untilHalt = async (): Promise<void> => {
    while (!tasks.halt.aborted) await sleep(2)
  }
  return { stop, hard, troubles, tasks, untilHalt }
}

test('the first failure that no retry can help ends all, and is what is told', async () => {
  const { tasks, untilHalt } = group()
  const ended: string[] = []
  tasks.start('good', async () => {
    await untilHalt()
    ended.push('good')
  })
  tasks.start('bad', async () => {
    throw new Failure('ROW_REJECTED')
  })
  tasks.start('worse, later', async () => {
    await untilHalt()
    throw new Failure('TARGET_DRIFTED')
  })
  await assert.rejects(tasks.ended(), { code: 'ROW_REJECTED' })
  assert.deepEqual(ended, ['good'], 'the others finish what they have in hand')
})

test('a task that can be tried again is, alone, and the trouble is told until it is over', async () => {
  const { tasks, troubles, untilHalt } = group()
  let calls = 0
  let others = 0
  tasks.start('shaky', async () => {
    if (++calls < 3) throw new Failure('SERVER_UNREACHABLE')
    await untilHalt()
  })
  tasks.start('steady', async () => {
    others++
    await untilHalt()
  })
  const began = performance.now()
  while (troubles.at(-1) !== undefined || troubles.length === 0) {
    assert.ok(performance.now() - began < 10_000)
    await sleep(10)
  }
  assert.deepEqual(troubles, ['SERVER_UNREACHABLE', 'SERVER_UNREACHABLE', undefined])
  assert.deepEqual([calls, others], [3, 1])
  tasks.end()
  await tasks.ended()
})

test('asked to stop, tasks finish what is in hand; what fails on the way out is not told', async () => {
  const { stop, tasks, untilHalt } = group()
  let finished = false
  tasks.start('busy', async () => {
    await untilHalt()
    await sleep(20)
    finished = true
  })
  tasks.start('cut off', async () => {
    await untilHalt()
    throw new Error('socket closed')
  })
  stop.abort()
  await tasks.ended()
  assert.ok(finished)
})

test('the hard signal reaches every task at once, and is what is told', async () => {
  const { hard, tasks } = group()
  tasks.start('waiting', async (signal) => {
    await sleep(60_000, undefined, { signal })
  })
  const reason = new Failure('LEASE_LOST')
  hard.abort(reason)
  await assert.rejects(tasks.ended(), { code: 'LEASE_LOST' })
})

test('a task that is started by another one is waited for too', async () => {
  const { tasks } = group()
  let late = false
  tasks.start('outer', async () => {
    await sleep(5)
    tasks.start('inner', async () => {
      await sleep(30)
      late = true
    })
  })
  await tasks.ended()
  assert.ok(late)
})

test('the trouble of a task that was tried again and is done is over', async () => {
  const { tasks, troubles, untilHalt } = group()
  let calls = 0
  tasks.start('once more', async () => {
    if (++calls < 2) throw new Failure('SERVER_UNREACHABLE')
  })
  tasks.start('steady', untilHalt)
  const began = performance.now()
  while (calls < 2 && performance.now() - began < 5000) await sleep(5)
  await sleep(5)
  assert.deepEqual(troubles, ['SERVER_UNREACHABLE', undefined])
  tasks.end()
  await tasks.ended()
})
