import assert from 'node:assert/strict'
import { rm } from 'node:fs/promises'
import { after, before, describe, it } from 'node:test'
import { sql, startPostgres, type PostgresServer } from '../support/postgres.ts'
import { startProxy } from '../support/proxy.ts'
import { createThings, scene, untilEqual, type Scene } from '../support/scene.ts'
import { needs } from '../support/servers.ts'
import { connected } from '../support/shop.ts'
import { journalLines, journalOf, verified, type Verified } from '../support/verified.ts'
import { until, type Worker } from '../support/worker.ts'

/** What cannot be told is never told equal. */
describe('a verification of what it cannot see', needs('pg'), () => {
  let server: PostgresServer
  before(async () => {
    server = await startPostgres()
    // Ours must not wait for the standby as well: what is looked at is what they meet.
    await sql(server.adminUrl, `create role mover superuser login; create role plain login; create role seer login`)
    await sql(server.adminUrl, 'grant pg_monitor to seer')
    await sql(server.adminUrl, 'alter role mover set synchronous_commit = local')
    for (const role of ['plain', 'seer'])
      await sql(server.adminUrl, `alter role ${role} set synchronous_commit = local`)
  })
  after(async () => await server?.[Symbol.asyncDispose]())

  const as = (url: string, user: string): string => url.replace('postgres@', `${user}@`)
  const standby = async (name: string): Promise<void> => {
    await sql(server.url('postgres', 'mover'), `alter system set synchronous_standby_names = '${name}'`)
    await sql(server.url('postgres', 'mover'), 'select pg_reload_conf()')
  }
  const waiting = async (condition: string): Promise<readonly string[]> =>
    (await sql(server.url('postgres', 'mover'), `select from pg_stat_activity where ${condition}`)).length > 0
      ? []
      : [`nobody with ${condition}`]

  /** Resolves once the commit stands still. */
  async function stall(url: string, text: string): Promise<{ release(): Promise<void> }> {
    await standby('nobody')
    const client = await connected(url)
    const setting = `select current_setting('synchronous_standby_names') as name`
    await until(
      async () => ((await client.query<{ name: string }>(setting)).rows[0]?.name === 'nobody' ? [] : ['not set yet']),
      { seconds: 10 },
    )
    const through = client.query(text).then(async () => await client.end())
    await until(async () => await waiting(`wait_event = 'SyncRep'`), { seconds: 20 })
    return {
      async release() {
        await standby('')
        await through
      },
    }
  }

  async function pair(
    name: string,
  ): Promise<{ readonly from: string; readonly to: string; readonly open: () => Promise<Scene> }> {
    const [from, to] = [await server.createDatabase(`${name}_from`), await server.createDatabase(`${name}_to`)]
    await createThings(from, 3000)
    await sql(
      from,
      `create table twin (a int, b text); alter table twin replica identity full; insert into twin select i % 50, 'b' from generate_series(1, 500) i`,
    )
    for (const user of ['plain', 'seer']) await sql(from, `grant select on all tables in schema public to ${user}`)
    return {
      from,
      to,
      open: async () => await scene({ source: as(from, 'mover'), target: as(to, 'mover'), name, mode: 'hybrid' }),
    }
  }
  const both = ['thing', 'twin']
  async function started(pipeline: Scene): Promise<Worker> {
    const worker = pipeline.run()
    await until(
      async () =>
        (await pipeline.command(['status', '--json'])).stdout.includes('"streaming"') ? [] : ['not streaming'],
      { seconds: 60, worker },
    )
    await untilEqual(pipeline, worker, 60, both)
    return worker
  }
  /** Not verified, for this reason, and no row named that does not differ. */
  function assertUnknown({ code, report }: Verified, why: RegExp, table?: string): void {
    const text = JSON.stringify(report)
    assert.equal(report.verdict, 'unknown', text)
    assert.equal(code, 3, text)
    assert.deepEqual(report.differences, [])
    const about = table === undefined ? report.why : report.tables.find((one) => one.table === table)?.why
    assert.match(about ?? '', why, text)
    if (table !== undefined) assert.equal(report.tables.find((one) => one.table === table)?.verdict, 'unknown')
  }
  function assertEqual({ code, report }: Verified): void {
    assert.deepEqual([code, report.verdict, report.why], [0, 'equal', null], JSON.stringify(report))
  }
  const short = ['--settle', '3', '--fresh']

  it('H20: a commit that waits for a standby, applied at the target or not, leaves it unknown', async () => {
    const { from, to, open } = await pair('stalled')
    await using pipeline = await open()
    const worker = await started(pipeline)
    const applied = await stall(from, `update thing set name = 'new' where id = 7`)
    try {
      await until(
        async () => ((await sql(to, `select from thing where name = 'new'`)).length === 1 ? [] : ['not applied']),
        { seconds: 20, worker },
      )
      assertUnknown(
        await verified(pipeline, short),
        /a commit at the source that is in its log was not visible/,
        'public.thing',
      )
      assertUnknown(
        await verified(pipeline, [...short, '--table', 'public.twin']),
        /a commit at the source that is in its log is not visible yet/,
      )
    } finally {
      await applied.release()
    }
    assertEqual(await verified(pipeline, short))
    assert.equal((await worker.stop()).code, 0)
    const unseen = await stall(from, `insert into thing values (10000, 'unseen')`)
    try {
      // Both ends read alike.
      assert.deepEqual(await pipeline.differences(both), [])
      assertUnknown(await verified(pipeline, short), /a commit at the source that is in its log is not visible yet/)
    } finally {
      await unseen.release()
    }
    const again = await started(pipeline)
    assertEqual(await verified(pipeline, short))
    assert.equal((await again.stop()).code, 0)
  })

  it('a target that is behind, and tables that are not copied or cannot be read, leave it unknown', async () => {
    const { from, to, open } = await pair('behind')
    await using pipeline = await open()
    const dead = await pipeline.run([], { CROSSFADE_FAILPOINT: 'copy.after-chunk:1' }).ended
    assert.equal(dead.signal, 'SIGKILL', dead.stdout + dead.stderr)
    assertUnknown(await verified(pipeline, short), /its copy is not complete yet/, 'public.thing')
    const worker = await started(pipeline)
    assertEqual(await verified(pipeline, short))

    await using locker = await connected(as(to, 'mover'))
    await locker.query('begin; select from thing where id = 5 for update')
    await sql(from, `update thing set name = 'behind' where id in (5, 6)`)
    assertUnknown(await verified(pipeline, short), /the target had not applied/, 'public.thing')
    assertUnknown(await verified(pipeline, [...short, '--table', 'public.twin']), /the target has not applied all/)
    await locker.query('rollback')
    await untilEqual(pipeline, worker, 30, both)

    await locker.query('begin; lock table thing in access exclusive mode')
    const late = await verified(pipeline, [...short, '--max-read', '1'])
    assertUnknown(late, /took longer than 1 s/, 'public.thing')
    const locked = await verified(pipeline, short)
    assertUnknown(locked, /has locked (public\.)?thing/, 'public.thing')
    for (const { report } of [late, locked])
      assert.equal(report.tables.find(({ table }) => table === 'public.twin')?.verdict, 'equal')
    await locker.query('rollback')
    await using keeper = await connected(from)
    await keeper.query('begin; lock table thing in access exclusive mode')
    const kept = await pipeline.command(['verify', '--json', ...short])
    assert.ok(kept.code === 3 || kept.code === 5, kept.stdout + kept.stderr)
    assert.match(kept.stdout + kept.stderr, /has locked (public\.)?thing/)
    await keeper.query('rollback')

    // At either end, somebody who may not read a table, or not all of its rows.
    for (const [end, url] of [
      ['SOURCE_URL', from],
      ['TARGET_URL', to],
    ] as const) {
      const env = { [end]: as(url, 'plain') }
      await sql(
        url,
        'grant usage on schema public to plain; grant select on all tables in schema public to plain; revoke select on thing from plain',
      )
      if (end === 'TARGET_URL')
        await sql(url, 'grant usage on schema crossfade to plain; grant all on all tables in schema crossfade to plain')
      const forbidden = await pipeline.command(['verify', '--json', ...short], env)
      assert.equal(forbidden.code, 3, forbidden.stdout + forbidden.stderr)
      assert.match(forbidden.stdout, /permission denied for table thing/)
      await sql(url, 'grant select on thing to plain')
      // Of both, as what the tables are made of is compared too; only one end is read by whom it concerns.
      for (const each of [from, to])
        await sql(each, 'alter table thing enable row level security; create policy few on thing using (id <> 9)')
      assertUnknown(await verified(pipeline, short, env), /row-level security/, 'public.thing')
      for (const each of [from, to])
        await sql(each, 'drop policy few on thing; alter table thing disable row level security')
    }
    assertEqual(await verified(pipeline, short))

    assert.equal((await worker.stop()).code, 0)
    await sql(from, `update thing set name = 'later' where id = 8; insert into twin values (1, 'more')`)
    const stopped = await verified(pipeline, short)
    assertUnknown(stopped, /no process runs the pipeline/, 'public.thing')
    assertUnknown(stopped, /no process runs the pipeline/, 'public.twin')
    assertUnknown(
      await verified(pipeline, [...short, '--table', 'public.other*', '--table', 'public.t*']),
      /could not be verified/,
    )
  })

  it('comes to equal beside transactions that stay open: idle, prepared or at a long statement', async () => {
    const { from, open } = await pair('idle')
    await using pipeline = await open()
    const worker = await started(pipeline)
    await using idle = await connected(from)
    await idle.query(`begin; update thing set name = 'open' where id = 1`)
    await using preparing = await connected(from)
    await preparing.query(`begin; update thing set name = 'prepared' where id = 2; prepare transaction 'p1'`)
    await using busy = await connected(from)
    await busy.query('begin')
    await using _ = {
      async [Symbol.asyncDispose]() {
        await sql(
          from,
          `select pg_cancel_backend(pid) from pg_stat_activity where query like '%pg_sleep(600)%' and pid <> pg_backend_pid()`,
        )
        for (const { gid } of await sql<{ gid: string }>(from, 'select gid from pg_prepared_xacts'))
          await sql(from, `rollback prepared '${gid}'`)
      },
    }
    const working = busy.query(
      `with u as (update thing set name = 'busy' where id = 3 returning 1) select pg_sleep(600) from u`,
    )
    working.catch(() => {})
    for (const user of ['mover', 'seer', 'plain']) {
      const report = await verified(pipeline, ['--settle', '10', '--fresh'], { SOURCE_URL: as(from, user) })
      assert.deepEqual(
        [report.code, report.report.verdict, report.report.why],
        [0, 'equal', null],
        `as ${user}: ${JSON.stringify(report.report)}`,
      )
    }
    // Whoever may see what others wait for sees that none of them waits for the standby; who may not is told what he lacks.
    await standby('nobody')
    assertEqual(await verified(pipeline, ['--settle', '10', '--fresh']))
    assertUnknown(await verified(pipeline, short, { SOURCE_URL: as(from, 'plain') }), /pg_read_all_stats/)
    await standby('')
    await sql(
      from,
      `select pg_cancel_backend(pid) from pg_stat_activity where query like '%pg_sleep(600)%' and pid <> pg_backend_pid()`,
    )
    await working.catch(() => {})
    await busy.query('rollback')
    await idle.query('commit')
    await preparing.query(`commit prepared 'p1'`)
    assertEqual(await verified(pipeline, short))
    assert.equal((await worker.stop()).code, 0)
  })

  it('a server that goes half-way ends it, and it goes on when that is back', async () => {
    const { from, to, open } = await pair('gone')
    await using pipeline = await open()
    const worker = await started(pipeline)
    for (const [end, url] of [
      ['SOURCE_URL', from],
      ['TARGET_URL', to],
    ] as const) {
      await rm(journalOf(pipeline), { force: true })
      await using proxy = await startProxy(server.port)
      const through = new URL(as(url, 'mover'))
      through.port = String(proxy.port)
      const running = pipeline.command(
        ['verify', '--json', '--fresh', '--settle', '10', '--jobs', '1', '--rate', '1000'],
        { [end]: through.href },
      )
      await until(
        async () =>
          (await journalLines(pipeline)).some(({ kind }) => kind === 'chunk') ? [] : ['nothing compared yet'],
        { seconds: 30 },
      )
      proxy.refuse(true)
      proxy.cut()
      const gone = await running
      assert.equal(gone.code, 5, gone.stdout + gone.stderr)
      assert.match(gone.stdout + gone.stderr, /SERVER_UNREACHABLE/)
      const lines = await journalLines(pipeline)
      assert.ok(lines.every(({ kind }) => kind !== 'end'))
      const report = await pipeline.command(['verify', 'report', '--json'])
      assert.equal(report.code, 3, report.stdout + report.stderr)
      const done = (all: readonly Record<string, unknown>[]): number =>
        all.filter(({ kind }) => kind === 'chunk').length
      assertEqual(await verified(pipeline))
      assert.deepEqual((await journalLines(pipeline)).slice(0, lines.length), lines)
      assert.equal(done(await journalLines(pipeline)), both.length)
    }
    assert.equal((await worker.stop()).code, 0)
  })
})
