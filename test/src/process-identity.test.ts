import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { it } from 'node:test'
import { memoryStore } from '../../src/coordinate/state-store.ts'
import { leases } from '../../src/coordinate/lease.ts'
import { hasEnded, hostAndPid, thisProcess } from '../../src/process-identity.ts'

const identity = new URL('../../src/process-identity.ts', import.meta.url).href

it('a process that runs has not ended, one that was killed has', async () => {
  assert.equal(hasEnded(thisProcess()), false)
  const script = `import { thisProcess } from '${identity}'; console.log(thisProcess()); setInterval(() => {}, 1000)`
  const child = spawn(process.execPath, ['--input-type=module', '-e', script])
  const [said] = (await once(child.stdout, 'data')) as [Buffer]
  const name = said.toString().trim()
  assert.equal(hostAndPid(name).split('/').at(-1), String(child.pid))
  assert.equal(hasEnded(name), false)
  const closed = once(child, 'close')
  child.kill('SIGKILL')
  await closed
  assert.equal(hasEnded(name), true)
})

it('nothing is certain about a process of another machine, boot or process space', () => {
  const [who = '', start = '', ...where] = thisProcess().split(' ')
  const dead = [who, '1', ...where].join(' ')
  assert.equal(hasEnded(dead), true, 'the same number, begun at another time')
  assert.equal(hasEnded(`else${dead}`), false)
  assert.equal(hasEnded([who, '1', 'another-boot', ...where.slice(1)].join(' ')), false)
  assert.equal(hasEnded(`${[who, start, ...where].join(' ')}0`), false)
  assert.equal(hasEnded('someone'), false)
  assert.equal(hasEnded(''), false)
})

it('the lease of a process that has ended need not run out', async () => {
  const store = memoryStore()
  const signal = new AbortController().signal
  const dead = await leases(store, 'dead').tryAcquire('capture', 60_000, signal)
  assert.equal(await leases(store, 'patient').tryAcquire('capture', 60_000, signal), undefined)
  const lease = await leases(store, 'informed', { hasEnded: (owner) => owner === 'dead' }).tryAcquire(
    'capture',
    60_000,
    signal,
  )
  assert.ok(lease)
  await lease[Symbol.asyncDispose]()
  await dead?.[Symbol.asyncDispose]()
})
