import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import { sql, startPostgres, type PostgresServer } from '../support/postgres.ts'
import { createThings, scene, untilEqual } from '../support/scene.ts'
import { needs } from '../support/servers.ts'
import { connected } from '../support/shop.ts'
import { until } from '../support/worker.ts'

/** A commit waits for a standby that is not there: it is in the log, and no new snapshot sees it. */
describe('a commit that is not visible yet', needs('pg'), () => {
  let server: PostgresServer
  before(async () => {
    server = await startPostgres()
    // Ours must not wait for the standby as well: what is looked at is what they meet.
    await sql(server.adminUrl, 'create role mover superuser login')
    await sql(server.adminUrl, 'alter role mover set synchronous_commit = local')
  })
  after(async () => await server?.[Symbol.asyncDispose]())

  const standby = async (name: string): Promise<void> => {
    await sql(server.url('postgres', 'mover'), `alter system set synchronous_standby_names = '${name}'`)
    await sql(server.url('postgres', 'mover'), 'select pg_reload_conf()')
  }
  const waiting = async (condition: string): Promise<readonly string[]> =>
    (await sql(server.url('postgres', 'mover'), `select from pg_stat_activity where ${condition}`)).length > 0
      ? []
      : [`nobody with ${condition}`]

  /** Resolves once the commit stands still; the result resolves when it is through, or its session was ended. */
  async function stall(url: string, text: string): Promise<{ readonly through: Promise<void> }> {
    await standby('nobody')
    const client = await connected(url)
    client.on('error', () => {})
    const setting = `select current_setting('synchronous_standby_names') as name`
    await until(
      async () => ((await client.query<{ name: string }>(setting)).rows[0]?.name === 'nobody' ? [] : ['not set yet']),
      { seconds: 10 },
    )
    const through = client.query(`begin; ${text}; commit`).then(
      async () => await client.end(),
      async () => await client.end().catch(() => {}),
    )
    await until(async () => await waiting(`wait_event = 'SyncRep'`), { seconds: 20 })
    return { through }
  }

  for (const release of ['released', 'ended'] as const) {
    it(`H20, H8: during a first and a resumed copy, and then ${release}, is at the target`, async (t) => {
      const [from, to] = [await server.createDatabase(`from_${release}`), await server.createDatabase(`to_${release}`)]
      await createThings(from, 6000)
      const as = (url: string): string => url.replace('postgres@', 'mover@')
      await using pipeline = await scene({
        source: as(from),
        target: as(to),
        name: `unseen_${release}`,
        mode: 'hybrid',
        more: 'snapshot: { parallel: 1, chunkRows: 300 }',
      })
      const slotWaits = `application_name like 'crossfade % slot' and wait_event_type = 'Lock'`
      const go = async (): Promise<void> => {
        if (release === 'ended')
          await sql(as(from), `select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'`)
        await standby('')
      }
      const changes = (n: number): string =>
        `update thing set name = name || ' ${n}' where id in (1, 3000, 5999); delete from thing where id = ${n + 10};
         insert into thing values (${n + 20_000}, 'new')`
      const first = await stall(from, changes(1))
      const dying = pipeline.run([], { CROSSFADE_FAILPOINT: 'copy.after-chunk:5' })
      await until(async () => await waiting(slotWaits), { seconds: 60, worker: dying })
      await go()
      await first.through
      assert.equal((await dying.ended).signal, 'SIGKILL')
      const copied = async (): Promise<number> =>
        (await sql<{ n: number }>(as(to), 'select count(*)::int as n from crossfade.chunk where done'))[0]?.n ?? 0
      const before = await copied()
      const second = await stall(from, changes(2))
      const worker = pipeline.run()
      await until(async () => await waiting(slotWaits), { seconds: 60, worker })
      await go()
      await second.through
      await until(async () => ((await copied()) !== before ? [] : ['nothing more copied']), { seconds: 60, worker })
      const third = await stall(from, changes(3))
      await go()
      await third.through
      const began = performance.now()
      await untilEqual(pipeline, worker, 60)
      t.diagnostic(
        `fault: commits stalled and ${release}; equal ${((performance.now() - began) / 1000).toFixed(1)} s later`,
      )
      assert.deepEqual(await sql(to, `select count(*)::int as n from thing where id > 20000`), [{ n: 3 }])
      assert.equal((await worker.stop()).code, 0)
    })
  }
})
