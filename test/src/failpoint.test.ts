import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { resolve } from 'node:path'
import { test } from 'node:test'

const file = resolve(import.meta.dirname, '../../src/failpoint.ts')
const passes = (spec: string | undefined): { readonly signal: string | null; readonly out: string } => {
  const script = `import { failpoint } from ${JSON.stringify(file)}
    import { writeSync } from 'node:fs'
    for (let n = 1; n <= 3; n++) { failpoint('copy.before-live'); failpoint('copy.in-chunk'); writeSync(1, String(n)) }`
  const env = { ...process.env, ...(spec !== undefined && { CROSSFADE_FAILPOINT: spec }) }
  const { signal, stdout } = spawnSync(process.execPath, ['--input-type=module', '-e', script], { env })
  return { signal, out: stdout.toString() }
}

test('a process dies at the named place, at the n-th passing, and nowhere else', () => {
  assert.deepEqual(passes(undefined), { signal: null, out: '123' })
  assert.deepEqual(passes('copy.in-chunk'), { signal: 'SIGKILL', out: '' })
  assert.deepEqual(passes('copy.in-chunk:3'), { signal: 'SIGKILL', out: '12' })
  assert.deepEqual(passes('copy.in-chunk:4'), { signal: null, out: '123' })
  assert.deepEqual(passes('copy.before-chunk'), { signal: null, out: '123' })
})
