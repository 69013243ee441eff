import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { through, shopPipeline, type ShopPipeline } from '../support/hurt.ts'
import { sql, startPostgres, type PostgresServer } from '../support/postgres.ts'
import { startProxy, type Proxy } from '../support/proxy.ts'
import { blocker, type Scene } from '../support/scene.ts'
import { needs } from '../support/servers.ts'
import { startStandby } from '../support/standby.ts'
import { until } from '../support/worker.ts'

/** The `pid` of the row that comes, once exactly one does. */
async function theOnly(url: string, query: string): Promise<number> {
  for (const deadline = performance.now() + 60_000; ; await sleep(50)) {
    const rows = await sql(url, query)
    if (rows.length === 1) return Number(rows[0]?.['pid'])
    assert.ok(performance.now() < deadline, `${rows.length} rows: ${query}`)
  }
}

describe('a source', needs('pg'), () => {
  let target: PostgresServer
  before(async () => {
    target = await startPostgres()
  })
  after(async () => await target?.[Symbol.asyncDispose]())

  async function pipelineFrom(source: PostgresServer, name: string, way?: Proxy): Promise<ShopPipeline> {
    const [from, to] = [await source.createDatabase(name), await target.createDatabase(name)]
    return await shopPipeline({ source: way ? through(from, way) : from, target: to, name })
  }

  it('H3, H11: restarted fast and at once, while it is written to, loses nothing', async (t) => {
    await using source = await startPostgres()
    await using pipeline = await pipelineFrom(source, 'restarts')
    for (const mode of ['fast', 'immediate'] as const) {
      await pipeline.hurt(t, `the source is stopped ${mode} and started again`, async () => {
        const asked = performance.now()
        await source.stop(mode)
        // Later it would have been stopped at once: a sender that waits for an acknowledgement holds it up.
        assert.ok(performance.now() - asked < 20_000, 'the source could not be stopped')
        await source.restart()
      })
    }
    await pipeline.end()
  })

  it('H11: failed over to a standby that has our slot, is followed without help', async (t) => {
    await using primary = await startPostgres()
    await using standby = await startStandby(primary)
    await using way = await startProxy(primary.port)
    await sql(primary.adminUrl, `alter system set synchronized_standby_slots = 'standby'`)
    await sql(primary.adminUrl, `alter system set synchronous_standby_names = 'standby'`)
    await sql(primary.adminUrl, 'select pg_reload_conf()')
    await using pipeline = await pipelineFrom(primary, 'failover', way)
    await until(
      async () => {
        const slots = await sql(
          standby.adminUrl,
          `select from pg_replication_slots where slot_name = 'crossfade_failover' and synced and not temporary`,
        )
        return slots.length === 1 ? [] : ['the slot has not come to the standby']
      },
      { seconds: 60, worker: pipeline.worker },
    )
    await pipeline.hurt(t, 'the source is killed, its standby promoted and put in its place', async () => {
      await primary.kill9()
      await sql(standby.adminUrl, 'select pg_promote()')
      way.redirect(standby.port)
      way.cut()
    })
    const [file] = await sql(pipeline.scene.source, 'select pg_walfile_name(pg_current_wal_lsn()) as name')
    assert.match(String(file?.['name']), /^00000002/)
    await pipeline.end()
  })

  it('H11: failed over to a standby that lacks what was published ends the run with SOURCE_DIVERGED, and so does the next', async (t) => {
    await using primary = await startPostgres()
    await using standby = await startStandby(primary)
    await using way = await startProxy(primary.port)
    await using pipeline = await pipelineFrom(primary, 'lacking', way)
    const { scene, worker } = pipeline
    await until(
      async () => {
        const slots = await sql(
          standby.adminUrl,
          `select from pg_replication_slots where slot_name = 'crossfade_lacking' and synced and not temporary`,
        )
        return slots.length === 1 ? [] : ['the slot has not come to the standby']
      },
      { seconds: 60, worker },
    )
    // No heartbeat follows, so no watermark; the standby has all so far, and receives nothing more; the source does not wait for it.
    const beating = await theOnly(
      scene.source,
      `select pid from pg_stat_activity where application_name ~ '^crossfade.*source' and query_start > now() - interval '1 second'`,
    )
    process.kill(beating, 'SIGSTOP')
    const [written] = await sql(scene.source, 'select pg_current_wal_flush_lsn()::text as lsn')
    await theOnly(standby.adminUrl, `select 1 as pid where pg_last_wal_receive_lsn() >= '${String(written?.['lsn'])}'`)
    const sending = await theOnly(
      scene.source,
      `select pid from pg_stat_replication where application_name = 'standby'`,
    )
    process.kill(sending, 'SIGSTOP')
    const lost = `select id from customer where email = 'lost@example.org'`
    await sql(scene.source, `insert into customer (email, name) values ('lost@example.org', 'lost')`)
    await until(async () => ((await sql(scene.target, lost)).length === 1 ? [] : ['the row is not at the target']), {
      seconds: 60,
      worker,
    })
    await primary.kill9()
    await sql(standby.adminUrl, 'select pg_promote()')
    way.redirect(standby.port)
    way.cut()
    t.diagnostic('fault: the source is replaced by a standby that lacks a transaction which the target holds')
    const end = await Promise.race([worker.ended, sleep(60_000)])
    assert.deepEqual([(await sql(scene.source, lost)).length, (await sql(scene.target, lost)).length], [0, 1])
    assert.ok(end, 'it goes on as if nothing were lost')
    assert.equal(end.code, 1, end.stderr)
    assert.match(end.stderr, /✗ SOURCE_DIVERGED /)
    assert.match(end.stderr, /timeline 2, which left 1 at/)
    const { error } = await scene.refused()
    assert.equal(error.code, 'SOURCE_DIVERGED')
  })

  it('H11: whose slot was invalidated ends the run with SLOT_LOST, whether it ran or not', async (t) => {
    await using source = await startPostgres({
      settings: { max_slot_wal_keep_size: '1MB', max_wal_size: '32MB', min_wal_size: '32MB' },
    })
    const lose = async ({ source }: Scene): Promise<void> => {
      for (let i = 0; i < 5; i++) await sql(source, `select pg_switch_wal(), pg_logical_emit_message(false, 'x', 'y')`)
      await sql(source, 'checkpoint')
    }
    const lost = async ({ source, name }: Scene): Promise<readonly string[]> => {
      const rows = await sql(source, `select from pg_replication_slots where slot_name = $1 and wal_status = 'lost'`, [
        `crossfade_${name}`,
      ])
      return rows.length === 1 ? [] : ['the slot is not lost yet']
    }
    await using pipeline = await pipelineFrom(source, 'lost')
    // A worker that stands still, as one on a machine that is suspended.
    process.kill(pipeline.worker.pid, 'SIGSTOP')
    await until(async () => (await lose(pipeline.scene), await lost(pipeline.scene)), { seconds: 60 })
    process.kill(pipeline.worker.pid, 'SIGCONT')
    const began = performance.now()
    const end = await pipeline.worker.ended
    t.diagnostic(
      `fault: the slot is invalidated; the run ended after ${((performance.now() - began) / 1000).toFixed(1)} s`,
    )
    assert.equal(end.code, 1, end.stderr)
    assert.match(end.stderr, /✗ SLOT_LOST /)
    assert.match(end.stderr, /slot crossfade_lost/)
    assert.match(end.stderr, /next +\S/)
    const again = await pipeline.scene.refused()
    const { observed, next } = blocker(again, 'source.slot')
    assert.match(observed ?? '', /the log it needs is gone/)
    assert.match(next ?? '', /pg_drop_replication_slot/)
  })
})
