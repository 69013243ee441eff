import assert from 'node:assert/strict'
import { spawn, type ChildProcessByStdio } from 'node:child_process'
import { once } from 'node:events'
import {
  chmod,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  truncate,
  utimes,
  writeFile,
  appendFile,
} from 'node:fs/promises'
import type { Readable } from 'node:stream'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import type { ChangeLog } from '../../../src/change-log/change-log.ts'
import { openEmbeddedLog } from '../../../src/change-log/embedded-log.ts'
import { headerSize } from '../../../src/change-log/segment.ts'
import { Failure } from '../../../src/errors.ts'
import { batchOf, changeLogConformance, readAll } from '../../conformance/change-log.ts'

const never = new AbortController().signal
const root = await mkdtemp(join(tmpdir(), 'crossfade-log-'))
after(() => rm(root, { recursive: true, force: true }))
const at = { topic: 't', partition: 0 }
const topic = { name: 't', partitions: 1, cleanup: 'delete' } as const
const code = (wanted: string) => (error: unknown) => error instanceof Failure && error.code === wanted

let topics = 0
changeLogConformance('embedded', {
  open: () => openEmbeddedLog(join(root, 'conformance'), never),
  topic: () => `topic-${topics++}`,
})

async function fresh(
  name: string,
): Promise<{ dir: string; open: () => Promise<ChangeLog>; files: () => Promise<string[]> }> {
  const dir = await mkdtemp(join(root, `${name}-`))
  return {
    dir,
    async open() {
      const log = await openEmbeddedLog(dir, never)
      try {
        await log.open([topic], never)
        return log
      } catch (error) {
        await log[Symbol.asyncDispose]()
        throw error
      }
    },
    async files() {
      const within = join(dir, 'topics', 't')
      const names = (await readdir(within)).filter((each) => each.endsWith('.log')).sort()
      return names.map((each) => join(within, each))
    },
  }
}
const put = async (log: ChangeLog, ...values: string[]): Promise<void> => {
  for (const value of values) await log.append([batchOf(at, [value])], never)
}

test('a torn tail is ignored, and the next offset follows what is whole', async () => {
  for (const cut of [1, 20, 60, 68]) {
    const { open, files } = await fresh('torn')
    {
      await using log = await open()
      await put(log, 'a', 'b')
    }
    const [file = ''] = await files()
    await truncate(file, (await stat(file)).size - cut)
    {
      await using log = await open()
      assert.deepEqual(await readAll(log, at), ['a'], `cut ${cut}`)
      await put(log, 'c')
    }
    await using log = await open()
    assert.deepEqual(await readAll(log, at), ['a', 'c'])
  }
})

test('what is written behind the end that a successor recorded is ignored', async () => {
  const { open, files } = await fresh('zombie')
  {
    await using log = await open()
    await put(log, 'a', 'b')
  }
  const [first = ''] = await files()
  const stale = (await readFile(first)).subarray(headerSize)
  {
    await using log = await open()
    await put(log, 'c')
  }
  // A former holder that woke up late: a whole batch that claims the next offset.
  const half = stale.subarray(stale.length / 2)
  half.writeBigInt64BE(2n, 0)
  await appendFile(first, half)
  await using log = await open()
  assert.deepEqual(await readAll(log, at), ['a', 'b', 'c'])
})

test('damage before the end is told, not taken for a torn tail', async () => {
  const { open, files } = await fresh('damage')
  {
    await using log = await open()
    await put(log, 'aaaa', 'bbbb', 'cccc')
  }
  const [file = ''] = await files()
  const bytes = await readFile(file)
  const place = bytes.indexOf('bbbb')
  bytes[place] = 0x58
  await writeFile(file, bytes)
  await assert.rejects(open(), code('LOG_DAMAGED'))
})

test('damage in a segment that has a successor is told', async () => {
  const { open, files } = await fresh('damage-old')
  for (const value of ['aaaa', 'bbbb']) {
    await using log = await open()
    await put(log, value)
  }
  const [file = ''] = await files()
  await truncate(file, (await stat(file)).size - 3)
  await assert.rejects(open(), code('LOG_DAMAGED'))
})

test('a segment whose header was never whole is passed over', async () => {
  const { open, files } = await fresh('header')
  for (const value of ['a', 'b']) {
    await using log = await open()
    await put(log, value)
  }
  const [, second = ''] = await files()
  await truncate(second, 30)
  await using log = await open()
  assert.deepEqual(await readAll(log, at), ['a'])
  await put(log, 'c')
  assert.deepEqual(await readAll(log, at), ['a', 'c'])
})

test('H14: what goes by size stays however old it is, as the last watermark must', async () => {
  const old = new Date(Date.now() - 30 * 24 * 3600 * 1000)
  for (const [cleanup, kept] of [
    ['size', ['0', '1', '2']],
    ['delete', ['2']],
  ] as const) {
    const { dir, files } = await fresh(cleanup)
    const open = async (): Promise<ChangeLog> => {
      const log = await openEmbeddedLog(dir, never)
      await log.open([{ ...topic, cleanup }], never)
      return log
    }
    for (const value of ['0', '1', '2']) {
      await using log = await open()
      await put(log, value)
    }
    for (const file of await files()) await utimes(file, old, old)
    await using log = await open()
    assert.deepEqual(await readAll(log, at, 3 - kept.length), kept)
    assert.equal((await files()).length, kept.length)
  }
})

test('opened twice in one process it is one log', async () => {
  const { dir, open } = await fresh('shared')
  await using writer = await open()
  {
    await using reader = await openEmbeddedLog(dir, never)
    const pending = reader.fetch([{ ...at, offset: 0 }], 10_000, never)
    await put(writer, 'a')
    assert.equal((await pending)[0]?.next, 1)
  }
  await put(writer, 'b')
  assert.deepEqual(await readAll(writer, at), ['a', 'b'])
})

/** Runs `body` in a process of its own; what it prints goes to `onText`. */
function inProcess(dir: string, body: string, before = '', first = ''): ChildProcessByStdio<null, Readable, null> {
  const from = (path: string): string => JSON.stringify(fileURLToPath(new URL(path, import.meta.url)))
  const script = `
    const { openEmbeddedLog } = await import(${from('../../../src/change-log/embedded-log.ts')})
    const { batchOf } = await import(${from('../../conformance/change-log.ts')})
    const signal = new AbortController().signal
    const at = { topic: 't', partition: 0 }
    ${first}
    const log = await openEmbeddedLog(${JSON.stringify(dir)}, signal).catch((error) => {
      console.log(error.code, JSON.stringify(error.facts))
      process.exit()
    })
    await log.open([${JSON.stringify(topic)}], signal)
    ${body}`
  return spawn('bash', ['-c', `${before} exec "$0" --input-type=module-typescript -e "$1"`, process.execPath, script], {
    env: { ...process.env, NODE_TEST_CONTEXT: undefined },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
}

test('another process is refused while one holds it, and takes over once that one is dead', async () => {
  const { dir, open } = await fresh('lock')
  const child = inProcess(
    dir,
    `for (let i = 0; ; i++) {
      await log.append([batchOf(at, [String(i)])], signal)
      process.stdout.write(i + '\\n')
    }`,
  )
  let printed = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (printed += text))
  while (printed.split('\n').length < 20) await once(child.stdout, 'data')
  await assert.rejects(open(), code('LOG_IN_USE'))
  child.kill('SIGKILL')
  await once(child, 'close')
  const acknowledged = printed.split('\n').slice(0, -1)
  await using log = await open()
  const kept = await readAll(log, at)
  assert.deepEqual(kept.slice(0, acknowledged.length), acknowledged)
  assert.ok(kept.length <= acknowledged.length + 1)
})

test('without space the round is refused and nothing is lost; with space it goes on', async () => {
  const { dir, open } = await fresh('full')
  // A file may grow to 64 kB: the system's answer beyond is that of a full disk but for its name.
  const child = inProcess(
    dir,
    `let done = 0
    const large = 'x'.repeat(7000)
    try {
      for (;;) {
        await log.append([batchOf(at, [done + large])], signal)
        done++
      }
    } catch (error) {
      await log.append([batchOf(at, ['small'])], signal)
      console.log(JSON.stringify({ done, code: error.code }))
      process.exit()
    }`,
    'ulimit -f 64;',
  )
  let printed = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (printed += text))
  await once(child, 'close')
  const { done, code: found } = JSON.parse(printed)
  assert.equal(found, 'LOG_FULL')
  assert.ok(done > 2)
  await using log = await open()
  const kept = await readAll(log, at)
  assert.equal(kept.length, done + 1)
  assert.equal(kept.at(-1), 'small')
})

test('H29: a log that is taken away from under its holder is noticed, not written on', async () => {
  for (const [what, taken] of [
    ['all of it', (dir: string) => rm(dir, { recursive: true })],
    ['a topic', (dir: string) => rm(join(dir, 'topics'), { recursive: true })],
    ['its lock', (dir: string) => rename(join(dir, 'holder-1'), join(dir, 'holder-2'))],
  ] as const) {
    const { dir, open } = await fresh('taken')
    await using log = await open()
    await put(log, 'a')
    await taken(dir)
    await assert.rejects(
      async () => {
        const deadline = performance.now() + 10_000
        while (performance.now() < deadline) await put(log, 'b')
      },
      code('LOG_DAMAGED'),
      what,
    )
  }
})

test('a topic whose files cannot be read is told by every question about it', async () => {
  const { dir, open } = await fresh('unreadable')
  await (await open())[Symbol.asyncDispose]()
  const questions = {
    ends: async (log: ChangeLog) => await log.ends([at], never),
    lows: async (log: ChangeLog) => await log.lows([at], never),
    fetch: async (log: ChangeLog) => await log.fetch([{ ...at, offset: 0 }], 0, never),
    append: async (log: ChangeLog) => await put(log, 'a'),
  }
  for (const [what, question] of Object.entries(questions)) {
    await using log = await openEmbeddedLog(dir, never)
    assert.equal((await log.topicIds(['t'], never)).size, 1)
    await rename(join(dir, 'topics', 't'), join(dir, 'topics', 'u'))
    await assert.rejects(question(log), code('LOG_DAMAGED'), what)
    await rename(join(dir, 'topics', 'u'), join(dir, 'topics', 't'))
  }
  await using log = await openEmbeddedLog(dir, never)
  await rm(join(dir, 'topics', 't', 'topic.json'))
  await mkdir(join(dir, 'topics', 't', 'topic.json'))
  await assert.rejects(log.topicIds(['t'], never), code('LOG_DAMAGED'))
})

test('what cannot be a folder, or not be written to, is told with what to do', async () => {
  const file = join(root, 'a-file')
  await writeFile(file, '')
  await assert.rejects(openEmbeddedLog(join(file, 'log'), never), code('CONFIG_INVALID'))
  const { dir, open } = await fresh('rights')
  await (await open())[Symbol.asyncDispose]()
  // Root may write anywhere: somebody else is asked. What the child needs is loaded before it becomes one.
  await chmod(root, 0o755)
  await chmod(dir, 0o555)
  const child = inProcess(dir, '', '', `process.getuid() === 0 && process.setuid(65534)`)
  let printed = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (printed += text))
  await once(child, 'close')
  await chmod(dir, 0o755)
  assert.match(printed, /^NO_RIGHTS /)
  assert.match(printed, /log\.dir/)
})
