import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { startKafka } from '../support/kafka.ts'
import { sql } from '../support/postgres.ts'
import { scene, untilEqual } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'

const tables = Array.from({ length: 40 }, (_, i) => `t${i}`)
const partitions = 16
/** Seconds a worker and its broker are looked at while nothing happens. */
const idle = 20

describe('more than 500 partitions in one pipeline', needs('pg', 'kafka'), () => {
  it('are copied and streamed, killed and gone on with; what they cost when idle', async (t) => {
    await using cluster = await startKafka()
    const pg = await postgres(18)
    const [source, target] = [await pg.database('many_source'), await pg.database('many_target')]
    for (const table of tables) {
      await sql(source, `create table ${table} (id int primary key, name text) with (autovacuum_enabled = false)`)
      await sql(source, `insert into ${table} select i, 'row ' || i from generate_series(1, 200) i`)
    }
    // As large as the planner thinks: that many rows get all the partitions.
    await sql(source, `update pg_class set reltuples = 200000, relpages = 1 where relname ~ '^t[0-9]+$'`)
    const log = `{ type: kafka, brokers: ["${cluster.brokers[0]}"], partitions: ${partitions}, replication: 1 }`
    await using pipeline = await scene({ source, target, mode: 'hybrid', log })
    const began = performance.now()
    let worker = pipeline.run()
    await untilEqual(pipeline, worker, 120, tables)
    t.diagnostic(`${tables.length * partitions} partitions; copied after ${since(began)} s`)
    const found = await sql(target, 'select count(*)::int as n from crossfade.checkpoint where pipeline = $1', [
      pipeline.name,
    ])
    assert.deepEqual(found, [{ n: tables.length * partitions }])

    const change = async (): Promise<void> => {
      for (const table of tables)
        await sql(source, `update ${table} set name = name || '!'; delete from ${table} where id % 50 = 1`)
    }
    await change()
    await untilEqual(pipeline, worker, 90, tables)
    await worker.kill9()
    await change()
    const again = performance.now()
    worker = pipeline.run()
    await untilEqual(pipeline, worker, 90, tables)
    t.diagnostic(`fault: worker killed; equal ${since(again)} s after the next began`)

    const [broker = 0] = cluster.pids
    const before = [cpuSeconds(worker.pid), cpuSeconds(broker)]
    await sleep(idle * 1000)
    const [ours = 0, theirs = 0] = [cpuSeconds(worker.pid), cpuSeconds(broker)].map((at, i) => at - (before[i] ?? 0))
    const percent = (seconds: number): string => `${((100 * seconds) / idle).toFixed(1)} % of a core`
    t.diagnostic(`idle: worker ${percent(ours)} and ${residentMb(worker.pid)} MB, broker ${percent(theirs)}`)
    assert.ok(ours / idle < 0.3, `an idle worker takes ${percent(ours)}`)
    assert.ok(residentMb(worker.pid) < 300)

    const one = performance.now()
    await sql(source, `update t7 set name = 'one' where id = 7`)
    await untilEqual(pipeline, worker, 30, ['t7'])
    t.diagnostic(`one change: equal after ${since(one)} s, the comparison included`)
    assert.equal((await worker.stop()).code, 0)
  })
})

/** Of a process so far, user and system. */
function cpuSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return (Number(fields[11]) + Number(fields[12])) / 100
}

function residentMb(pid: number): number {
  const kb = /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
  return Math.round(Number(kb) / 1024)
}

function since(began: number): string {
  return ((performance.now() - began) / 1000).toFixed(1)
}
