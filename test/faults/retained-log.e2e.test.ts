import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql, startPostgres, type PostgresServer } from '../support/postgres.ts'
import { createThings, scene, untilEqual } from '../support/scene.ts'
import { needs } from '../support/servers.ts'
import { until } from '../support/worker.ts'

const mebibyte = 2 ** 20

/** What the slot holds back of the server's log: what was not acknowledged, and what the server keeps to begin there. */
async function retained(
  server: PostgresServer,
  slot: string,
): Promise<{ readonly ahead: number; readonly kept: number }> {
  const [row] = await sql<{ ahead: string; kept: string }>(
    server.adminUrl,
    `select pg_current_wal_lsn() - confirmed_flush_lsn as ahead, pg_current_wal_lsn() - restart_lsn as kept
       from pg_replication_slots where slot_name = $1`,
    [slot],
  )
  return { ahead: Number(row?.ahead), kept: Number(row?.kept) }
}

describe('the log that a source keeps for a pipeline', needs('pg'), () => {
  let server: PostgresServer
  before(async () => {
    server = await startPostgres()
  })
  after(async () => await server?.[Symbol.asyncDispose]())

  it('is let go while the pipeline’s tables are written to, and while only others’ are', async (t) => {
    const [source, target, other] = [
      await server.createDatabase('source'),
      await server.createDatabase('target'),
      await server.createDatabase('other'),
    ]
    await createThings(source, 1000)
    await sql(other, 'create table thing (id int, name text)')
    await using pipeline = await scene({ source, target, name: 'kept', mode: 'hybrid' })
    const worker = pipeline.run()
    await untilEqual(pipeline, worker)
    await until(async () => (/ streaming /.test(worker.printed()) ? [] : ['not live yet']), { seconds: 60, worker })
    const fill = `insert into thing select i, repeat(md5(i::text), 8) from generate_series(1, 20000) i`
    for (const [who, write] of [
      ['its tables', async () => await sql(source, `update thing set name = repeat(md5(random()::text), 50)`)],
      ['others’ tables', async () => await sql(other, fill)],
    ] as const) {
      const start = await written(server)
      let [ahead, kept] = [0, 0]
      for (let i = 0; i < 20; i++) {
        await write()
        const now = await retained(server, 'crossfade_kept')
        ;[ahead, kept] = [Math.max(ahead, now.ahead), Math.max(kept, now.kept)]
        await sleep(100)
      }
      const mark = await written(server)
      const began = performance.now()
      // All that was written before is acknowledged, and none of it kept. The server notes every 15 s where it could begin.
      await until(
        async () => {
          const [now, at] = [await retained(server, 'crossfade_kept'), await written(server)]
          return now.kept <= at - mark + mebibyte && now.ahead <= at - mark + mebibyte ? [] : [JSON.stringify(now)]
        },
        { seconds: 60, worker },
      )
      const megabytes = (bytes: number): string => `${(bytes / mebibyte).toFixed(0)} MB`
      const seconds = ((performance.now() - began) / 1000).toFixed(1)
      t.diagnostic(
        `${megabytes(mark - start)} of log by writes to ${who}: at most ${megabytes(ahead)} not acknowledged and ${megabytes(kept)} kept; let go after ${seconds} s`,
      )
      assert.ok(mark - start > 20 * mebibyte)
    }
    await untilEqual(pipeline, worker)
    assert.equal((await worker.stop()).code, 0)
  })
})

async function written(server: PostgresServer): Promise<number> {
  const [row] = await sql<{ at: string }>(server.adminUrl, `select pg_current_wal_lsn() - '0/0' as at`)
  return Number(row?.at)
}
