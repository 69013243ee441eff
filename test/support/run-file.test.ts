import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { promisify } from 'node:util'
import type { FileLimits, FileResult } from './run-file.ts'

let dir = ''
let driver = ''
before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'crossfade-run-file-'))
  driver = join(dir, 'driver.mjs')
  const script = `import { runFile } from '${support('run-file.ts')}'
    console.log(JSON.stringify(await runFile(process.argv[2], JSON.parse(process.argv[3]), process.env)))`
  await writeFile(driver, script)
})
after(() => rm(dir, { recursive: true }))

const support = (file: string): string => new URL(file, import.meta.url).href

/** In a process of its own: node:test runs no tests from within a test. */
async function runText(text: string, testMs = 10_000): Promise<FileResult> {
  const file = join(dir, `${process.hrtime.bigint()}.test.ts`)
  await writeFile(file, `import { test, describe } from 'node:test'\n${text}`)
  const limits: FileLimits = { testMs, fileMs: 30_000, idleMs: 500, slowMs: 900, names: [] }
  const args = [driver, file, JSON.stringify(limits)]
  const { stdout } = await promisify(execFile)(process.execPath, args, {
    env: { ...process.env, NODE_TEST_CONTEXT: undefined },
  })
  return JSON.parse(stdout)
}

test('tests are counted, suites are not', async () => {
  const result = await runText(`
    describe('suite', () => { test('a', () => {}); test('b', { skip: 'no server' }, () => {}) })
    test('c', async (t) => { await t.test('d', () => {}) })`)
  assert.equal(result.passed, 3)
  assert.deepEqual(result.failures, [])
  assert.deepEqual(result.skipped, [{ name: 'suite > b', reason: 'no server' }])
})

test('what tests tell of themselves is kept', async () => {
  const result = await runText(`test('a', (t) => t.diagnostic('fault: all')); console.log('printed')`)
  assert.deepEqual(result.told, ['fault: all'])
  assert.match(result.output, /printed/)
})

test('a failure bears its name, place and message', async () => {
  const result = await runText(`describe('suite', () => {\n test('bad', () => { throw new Error('boom') })\n})`)
  assert.equal(result.failures.length, 1)
  assert.equal(result.failures[0]?.name, 'suite > bad')
  assert.match(result.failures[0]?.place ?? '', /\.test\.ts:3:\d+$/)
  assert.match(result.failures[0]?.text ?? '', /boom/)
})

test('a test that does not end fails at its limit', async () => {
  const result = await runText(`test('stuck', () => new Promise((resolve) => setTimeout(resolve, 60_000)))`, 500)
  assert.match(result.failures[0]?.text ?? '', /timed out/)
  assert.equal(result.failures[0]?.name, 'stuck')
})

test('a file that crashes, has no test or does not end fails', async () => {
  const crash = await runText(`test('fine', () => {}); setTimeout(() => process.exit(3), 50)`)
  assert.match(crash.failures[0]?.text ?? '', /exit code 3/)
  assert.match((await runText('')).failures[0]?.text ?? '', /no test/)
  const late = await runText(`test('fine', () => void setTimeout(() => { throw new Error('late') }, 20))`)
  assert.equal(late.failures.length, 1)
  const hung = await runText(`test('fine', () => {}); setInterval(() => {}, 1000)`)
  assert.match(hung.failures[0]?.text ?? '', /left open/)
})

test('what a test leaves open fails that test, by kind', async () => {
  const result = await runText(`
    import { createServer } from 'node:net'
    import { noLeaks } from '${support('leaks.ts')}'
    noLeaks()
    test('clean', async () => {
      const server = createServer().listen(0)
      await new Promise((resolve) => server.close(resolve))
    })
    let server
    test('leaky', async () => {
      server = createServer()
      await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
    })
    test('next', () => server.close())`)
  assert.deepEqual(
    result.failures.map((failure) => failure.name),
    ['leaky'],
  )
  assert.match(result.failures[0]?.text ?? '', /1 listener/)
  assert.equal(result.passed, 2)
})
