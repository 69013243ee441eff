import assert from 'node:assert/strict'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { seed, shopPipeline, type ShopPipeline } from '../support/hurt.ts'
import { sql, startPostgres, type PostgresServer } from '../support/postgres.ts'
import { assertRefusal, createThings, scene, secret, untilEqual } from '../support/scene.ts'
import { needs } from '../support/servers.ts'
import { until } from '../support/worker.ts'

describe('sessions', needs('pg'), () => {
  let source: PostgresServer
  let target: PostgresServer
  before(async () => {
    ;[source, target] = await Promise.all([startPostgres(), startPostgres()])
  })
  after(async () => {
    for (const each of [source, target]) await each?.[Symbol.asyncDispose]()
  })

  async function pipelineOf(name: string): Promise<ShopPipeline> {
    const [from, to] = [await source.createDatabase(name), await target.createDatabase(name)]
    return await shopPipeline({ source: from, target: to, name })
  }

  it('H11, H18: that are ended at random, for 30 s and at both ends, come back', async (t) => {
    t.diagnostic(`CROSSFADE_SEED=${seed}`)
    await using pipeline = await pipelineOf('terminated')
    let state = seed
    const random = (below: number): number => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0
      return Math.floor((state / 2 ** 32) * below)
    }
    let ended = 0
    await pipeline.hurt(t, 'random sessions are ended for 30 s', async () => {
      for (const end = performance.now() + 30_000; performance.now() < end; await sleep(50 + random(700))) {
        const { adminUrl } = random(2) === 0 ? source : target
        const sessions = await sql<{ pid: number }>(
          adminUrl,
          `select pid from pg_stat_activity where application_name like 'crossfade terminated %' order by pid`,
        )
        const chosen = sessions[random(sessions.length)]
        if (chosen !== undefined) ended += (await sql(adminUrl, 'select pg_terminate_backend($1)', [chosen.pid])).length
      }
    })
    t.diagnostic(`${ended} sessions were ended`)
    assert.ok(ended > 10)
    await pipeline.end()
  })

  it('for which a server has no room are named at the start, and waited for later', async (t) => {
    const owned = async (server: PostgresServer): Promise<string> => {
      await sql(server.adminUrl, 'create role crowd login replication')
      await sql(server.adminUrl, 'create database crowded owner crowd')
      return server.url('crowded', 'crowd')
    }
    const limit = async (server: PostgresServer, n: number): Promise<void> =>
      void (await sql(server.adminUrl, `alter role crowd connection limit ${n}`))
    const [from, to] = [await owned(source), await owned(target)]
    await createThings(from)
    await using pipeline = await scene({ source: from, target: to, name: 'crowded', mode: 'hybrid' })
    const ends = { source, target }
    for (const [end, server] of Object.entries(ends)) {
      await limit(server, 0)
      const refusal = await pipeline.refused()
      assertRefusal(refusal, 'SERVER_BUSY', 5)
      assert.match(refusal.error.observed ?? '', /too many connections/)
      t.diagnostic(`fault: no session is free at the ${end} at the start; named`)
      await limit(server, -1)
    }
    const worker = pipeline.run()
    await untilEqual(pipeline, worker)
    for (const [end, server] of Object.entries(ends)) {
      await limit(server, 0)
      await sql(server.adminUrl, `select pg_terminate_backend(pid) from pg_stat_activity where usename = 'crowd'`)
      await sql(source.url('crowded'), `update thing set name = '${end}' where id % 2 = 0`)
      await sleep(8_000)
      await limit(server, -1)
      const began = performance.now()
      await untilEqual(pipeline, worker, 60)
      t.diagnostic(
        `fault: no session is free at the ${end} for 8 s; equal ${secondsSince(began)} s after there was room`,
      )
    }
    assert.equal((await worker.stop()).code, 0)
  })

  it('whose password was changed end the run where they must be opened anew, and the next run goes on', async (t) => {
    await using server = await startPostgres()
    const to = await server.createDatabase('password')
    await sql(to, `create role app superuser login password '${secret}'`)
    const hba = join(server.dataDir, 'pg_hba.conf')
    await writeFile(hba, `host all app 127.0.0.1/32 scram-sha-256\n${await readFile(hba, 'utf8')}`)
    await sql(to, 'select pg_reload_conf()')
    const from = await source.createDatabase('password')
    const asApp = to.replace('postgres@', 'app@')
    await sql(from, `create table thing (id int primary key, name text); insert into thing values (1, 'one')`)
    await using pipeline = await scene({ source: from, target: asApp, name: 'password', mode: 'hybrid' })
    const equal = async (): Promise<readonly string[]> => {
      const rows = await sql(from, 'select * from thing order by id')
      const found = await sql(to, 'select * from thing order by id').catch(() => [])
      return JSON.stringify(rows) === JSON.stringify(found) ? [] : ['not equal']
    }
    const worker = pipeline.run()
    await until(equal, { seconds: 60, worker })
    // The end of a copy opens sessions.
    await until(async () => (/ streaming /.test(worker.printed()) ? [] : ['not streaming yet']), {
      seconds: 60,
      worker,
    })
    await sql(to, `alter role app password 'Another'`)
    await sql(from, `insert into thing values (2, 'two')`)
    await until(equal, { seconds: 30, worker })
    t.diagnostic('fault: the password is changed; open sessions go on')
    await sql(to, `select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'`)
    const end = await worker.ended
    assert.equal(end.code, 5, end.stderr)
    assert.match(end.stderr, /✗ NO_RIGHTS /)
    assert.match(end.stderr, /Correct user and password/)
    await sql(to, `alter role app password '${secret}'`)
    await sql(from, `insert into thing values (3, 'three')`)
    const next = pipeline.run()
    await until(equal, { seconds: 60, worker: next })
    assert.equal((await next.stop()).code, 0)
  })
})

function secondsSince(began: number): string {
  return ((performance.now() - began) / 1000).toFixed(1)
}
