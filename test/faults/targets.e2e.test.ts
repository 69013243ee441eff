import assert from 'node:assert/strict'
import { execFile, spawnSync } from 'node:child_process'
import { cp, mkdtemp, rename, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { shopPipeline, type ShopPipeline } from '../support/hurt.ts'
import { sql, startPostgres, type PostgresServer } from '../support/postgres.ts'
import { account, childrenOf } from '../support/processes.ts'
import { createThings, scene, untilEqual } from '../support/scene.ts'
import { needs } from '../support/servers.ts'
import { connected } from '../support/shop.ts'
import { until } from '../support/worker.ts'

const run = promisify(execFile)

describe('a target', needs('pg'), () => {
  let source: PostgresServer
  let target: PostgresServer
  before(async () => {
    ;[source, target] = await Promise.all([startPostgres(), startPostgres()])
  })
  after(async () => {
    for (const each of [source, target]) await each?.[Symbol.asyncDispose]()
  })

  async function pipelineTo(name: string): Promise<ShopPipeline> {
    const [from, to] = [await source.createDatabase(name), await target.createDatabase(name)]
    return await shopPipeline({ source: from, target: to, name })
  }

  it('H2, H12: restarted fast, at once, and crashed with all its sessions, loses nothing', async (t) => {
    await using pipeline = await pipelineTo('restarts')
    for (const mode of ['fast', 'immediate'] as const) {
      await pipeline.hurt(t, `the target is stopped ${mode} and started again`, async () => {
        await target.stop(mode)
        await target.restart()
      })
    }
    await pipeline.hurt(t, 'a process of the target is killed, which ends all sessions and recovers', async () => {
      const [row] = await sql<{ pid: number }>(
        target.adminUrl,
        `select pid from pg_stat_activity where application_name like 'crossfade % lane' limit 1`,
      )
      assert.ok(row && childrenOf(target.pid).includes(row.pid))
      process.kill(row.pid, 'SIGKILL')
    })
    await pipeline.end()
  })

  it('H12: restored to an older state is brought forward again from the log', async (t) => {
    await using pipeline = await pipelineTo('older')
    const backup = `${target.dataDir}.backup`
    await pipeline.hurt(t, 'the target is stopped for a backup of its files', async () => {
      await target.stop()
      await run('cp', ['-a', target.dataDir, backup])
      await target.restart()
    })
    // Each start captures under a higher epoch, which the log knows and the backup does not.
    for (let start = 0; start < 2; start++) {
      await pipeline.end()
      pipeline.run()
      await pipeline.hurt(t, 'the worker is started again', async () => {})
    }
    // The worker is told nothing: it finds itself in the past, where its lease and claims never were.
    await pipeline.hurt(t, 'the target is restored to that backup under the running worker', async () => {
      await target.stop()
      await rm(target.dataDir, { recursive: true })
      await rename(backup, target.dataDir)
      await target.restart()
    })
    await pipeline.end()
    pipeline.run()
    await pipeline.hurt(t, 'the worker is started again', async () => {})
    await pipeline.end()
  })

  it('H12, H23: newer than the log it is fed from ends the run, and nothing is applied', async (t) => {
    await using pipeline = await pipelineTo('newer')
    const { dir } = pipeline.scene.work
    await pipeline.end()
    const [log, older] = [join(dir, '.crossfade'), join(dir, 'older')]
    await cp(log, older, { recursive: true })
    pipeline.run()
    await pipeline.hurt(t, 'the log goes on', async () => {})
    await pipeline.end()
    await rm(log, { recursive: true })
    await rename(older, log)
    const before = await sql(pipeline.scene.target, 'select * from crossfade.checkpoint order by topic, part')
    const worker = pipeline.run()
    const end = await worker.ended
    assert.equal(end.code, 1, end.stderr)
    const code = /✗ (LOG_DAMAGED|LOG_GAP|SOURCE_DIVERGED) /.exec(end.stderr)?.[1]
    t.diagnostic(`fault: the log is older than the target; ended with ${code}`)
    assert.ok(code, end.stderr)
    const strip = (rows: readonly Record<string, unknown>[]): unknown =>
      rows.map(({ topic, part, next_offset, mark_position }) => ({ topic, part, next_offset, mark_position }))
    const after = await sql(pipeline.scene.target, 'select * from crossfade.checkpoint order by topic, part')
    assert.deepEqual(strip(after), strip(before))
  })

  it('whose rows others lock in another order is waited for', async (t) => {
    await using pipeline = await pipelineTo('deadlocks')
    let deadlocks = 0
    await pipeline.hurt(t, 'a foreign session locks rows of the target in the other order, twenty times', async () => {
      for (let i = 0; i < 20; i++) {
        await using client = await connected(pipeline.scene.target)
        // Who waits for less notices first, and loses.
        await client.query(`set deadlock_timeout = '${i % 2 === 0 ? '200ms' : '10s'}'`)
        try {
          for (const order of ['desc', 'asc'])
            await client.query(
              `begin; select from account where id in (select id from account order by id ${order} limit 250)
                   order by id desc for update; select pg_sleep(0.05)`,
            )
          await client.query('select from account order by id desc for update; rollback')
        } catch {
          deadlocks++
        }
      }
    })
    const [row] = await sql<{ deadlocks: string }>(
      pipeline.scene.target,
      `select deadlocks from pg_stat_database where datname = current_database()`,
    )
    t.diagnostic(`${row?.deadlocks} deadlocks, ${deadlocks} of them lost by the foreign session`)
    await pipeline.end()
  })

  it('whose statements fail for a moment, while rows are copied and while changes come, is asked again', async (t) => {
    const states = ['40001', '57014', '55P03', '40P01', '53200', '40001']
    const [from, to] = [await source.createDatabase('moments'), await target.createDatabase('moments')]
    await createThings(from, 3000)
    await createThings(to, 0)
    // A number that was given out stays so when its transaction is undone: each statement fails of the next state, until all had their turn.
    await sql(
      to,
      `create sequence turn;
       create function fail() returns trigger language plpgsql as $$
         declare state text := ('{${states.join()}}'::text[])[nextval('public.turn')];
         begin if state is not null then raise exception using errcode = state, message = 'for a moment'; end if; return null; end $$`,
    )
    const all = async (): Promise<readonly string[]> => {
      const [row] = await sql<{ turns: string }>(to, 'select last_value as turns from turn')
      return Number(row?.turns) > states.length ? [] : [`${row?.turns} turns`]
    }
    await using pipeline = await scene({
      source: from,
      target: to,
      name: 'moments',
      mode: 'hybrid',
      more: 'snapshot: { schema: none }',
    })
    // A start refuses such a trigger: it comes when the copy waits for the table.
    await using other = await connected(to)
    await other.query('begin; lock table thing in share row exclusive mode')
    const worker = pipeline.run()
    const waits = `select from pg_locks where relation = 'thing'::regclass and not granted`
    await until(async () => ((await other.query(waits)).rows.length > 0 ? [] : ['nobody waits']), {
      seconds: 60,
      worker,
    })
    await other.query(`create trigger fail before insert or update or delete on thing for each statement execute function fail();
      alter table thing enable always trigger fail; commit`)
    await untilEqual(pipeline, worker)
    assert.deepEqual(await all(), [])
    await until(async () => (/ streaming /.test(worker.printed()) ? [] : ['not live yet']), { seconds: 60, worker })
    t.diagnostic(`fault: ${states.join(', ')} while rows are copied; equal`)
    await sql(to, `select setval('turn', 1, false)`)
    await sql(from, `update thing set name = name || '!' where id % 3 = 0`)
    await sql(from, 'delete from thing where id % 5 = 0')
    await untilEqual(pipeline, worker)
    await until(all, { seconds: 10, worker })
    t.diagnostic(`fault: ${states.join(', ')} while changes are applied; equal`)
    assert.equal((await worker.stop()).code, 0)
  })

  const canMount = account.uid !== undefined && spawnSync('unshare', ['-m', 'true']).status === 0
  it(
    'whose disk is full is waited for until there is space',
    { skip: canMount ? false : 'a small file system can be mounted by root only' },
    async (t) => {
      const disk = await mkdtemp(join(tmpdir(), 'crossfade-disk-'))
      await run('mount', ['-t', 'tmpfs', '-o', `size=24m,uid=${account.uid},mode=700`, 'tmpfs', disk])
      try {
        const space = join(disk, 'space')
        await run('mkdir', [space])
        await run('chown', [`${account.uid}:${account.gid}`, space])
        await sql(target.adminUrl, `create tablespace small location '${space}'`)
        const from = await source.createDatabase('full')
        await sql(target.adminUrl, `create database "full" tablespace small`)
        await createThings(from, 1000)
        await using pipeline = await scene({ source: from, target: target.url('full'), name: 'full', mode: 'hybrid' })
        const worker = pipeline.run()
        await untilEqual(pipeline, worker)
        await run('fallocate', ['-l', String((await free(disk)) - 200_000), join(disk, 'ballast')])
        await sql(from, `insert into thing select i, repeat(md5(i::text), 20) from generate_series(2000, 6000) i`)
        await until(async () => (/No space left|53100/.test(worker.output()) ? [] : ['not full yet']), {
          seconds: 60,
          worker,
        })
        await sleep(2000)
        await rm(join(disk, 'ballast'))
        const began = performance.now()
        await untilEqual(pipeline, worker, 60)
        t.diagnostic(
          `fault: the disk is full; equal ${((performance.now() - began) / 1000).toFixed(1)} s after there was space`,
        )
        assert.equal((await worker.stop()).code, 0)
      } finally {
        await sql(target.adminUrl, 'drop database if exists "full" with (force)').catch(() => {})
        await sql(target.adminUrl, 'drop tablespace if exists small').catch(() => {})
        await run('umount', ['-l', disk])
        await rm(disk, { recursive: true, force: true })
      }
    },
  )
})

async function free(path: string): Promise<number> {
  const { stdout } = await run('df', ['--output=avail', '-B1', path])
  return Number(stdout.trim().split('\n').at(-1))
}
