import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, it } from 'node:test'
import { logConfig } from '../support/kills.ts'
import { sql } from '../support/postgres.ts'
import { leftAtSource, scene, type Scene } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { compareShops, connected, createShop, loadShop, shopTables, startWriters } from '../support/shop.ts'
import { until, type Worker } from '../support/worker.ts'

const seed = Number(process.env['CROSSFADE_SEED'] ?? Date.now() % 100_000)

async function prepared(log: 'kafka' | 'embedded', rows: number): Promise<Scene> {
  const pg = await postgres(18)
  const [source, target] = [await pg.database('zombie_source'), await pg.database('zombie_target')]
  await createShop(source)
  await loadShop(source, rows)
  const more = 'snapshot: { parallel: 2, chunkRows: 500 }\napply: { lanes: 3 }\n'
  return await scene({ source, target, mode: 'hybrid', log: await logConfig(log, 2), more })
}
async function isStopped({ pid }: Worker): Promise<boolean> {
  return /^State:\s+T/m.test(await readFile(`/proc/${pid}/status`, 'utf8'))
}
async function shows(worker: Worker, text: string | RegExp): Promise<void> {
  const told = async (): Promise<readonly string[]> =>
    worker.output().search(text) >= 0 ? [] : [`it does not say ${text}`]
  await until(told, { seconds: 120, worker })
}
/** Which version of each row is there, and of each copy, chunk and barrier: any write at all changes it. Of a checkpoint all but its offset, which
 *  moves over what a zombie publishes. */
async function versions(url: string): Promise<readonly string[]> {
  await using client = await connected(url)
  const found: string[] = []
  const version = `ctid::text || '/' || xmin::text`
  const checkpoint = 'topic, part, mark_position, mark_seq, capture_epoch, claim, hold, loose'
  const all: readonly (readonly [string, string])[] = [
    ...[...shopTables, 'crossfade.copy', 'crossfade.chunk', 'crossfade.barrier'].map(
      (table) => [table, version] as const,
    ),
    ['crossfade.checkpoint', `concat_ws('/', ${checkpoint})`],
  ]
  for (const [table, what] of all) {
    const { rows } = await client.query<{ digest: string }>(
      `select count(*) || ' ' || coalesce(md5(string_agg(${what}, ',' order by ${what})), '') as digest from ${table}`,
    )
    found.push(`${table}: ${rows[0]?.digest}`)
  }
  return found
}
/** What is there once nothing moves any more. */
async function atRest(url: string): Promise<readonly string[]> {
  let last: readonly string[] = []
  await until(
    async () => {
      const before = last
      last = await versions(url)
      await sleep(1000)
      return last.filter((line) => !before.includes(line))
    },
    { seconds: 60 },
  )
  return last
}
/** The zombie wakes up, finds out and stands by; the target, equal and at rest, is the same to the last version of a row. */
async function wakesInVain(pipeline: Scene, zombie: Worker, successor: Worker): Promise<void> {
  const before = await atRest(pipeline.target)
  const said = zombie.output().length
  process.kill(zombie.pid, 'SIGCONT')
  await until(
    async () => (zombie.output().slice(said).includes('standing by until it ends') ? [] : ['it has not noticed']),
    { seconds: 120, worker: zombie },
  )
  assert.deepEqual(await versions(pipeline.target), before)
  // The successor goes on as before, and would be followed by the one that woke up.
  await sql(pipeline.source, 'insert into basket values (900001, 1)')
  const there = async (id: number, worker: Worker): Promise<void> =>
    await until(
      async () =>
        (await sql(pipeline.target, `select from basket where customer_id = ${id}`)).length === 1
          ? []
          : ['the row has not come'],
      { seconds: 120, worker },
    )
  await there(900001, successor)
  assert.equal((await successor.stop()).code, 0)
  await sql(pipeline.source, 'insert into basket values (900002, 1)')
  await there(900002, zombie)
  assert.equal((await zombie.stop()).code, 0)
}

describe('a worker that was thought dead', { ...needs('pg', 'kafka'), concurrency: 3 }, () => {
  it('H1: stopped while it streams and replaced, it changes nothing when it wakes up', async (t) => {
    t.diagnostic(`CROSSFADE_SEED=${seed}`)
    await using pipeline = await prepared('kafka', 3000)
    const writers = startWriters(pipeline.source, { seed, writers: 3, pause: 3 })
    const zombie = pipeline.run()
    await shows(zombie, / streaming /)
    await sleep(1000 + (seed % 1000))
    process.kill(zombie.pid, 'SIGSTOP')
    // What its sockets take in meanwhile it will want to publish and to apply.
    const successor = pipeline.run()
    await shows(successor, / streaming /)
    const written = await writers.stop()
    await until(async () => await compareShops(pipeline.source, pipeline.target, written), {
      seconds: 120,
      worker: successor,
    })
    await wakesInVain(pipeline, zombie, successor)
    const dropped = /dropped records of an earlier capture/.test(successor.output())
    t.diagnostic(
      `fired: stopped while streaming; ${dropped ? 'it published, and was not read' : 'it published nothing'}`,
    )
    assert.deepEqual(await compareShops(pipeline.source, pipeline.target, written), [])
  })

  // With its next step on its way it finds out too late: the log, the target and the source have to refuse it.
  for (const [point, passing] of [
    ['capture.before-append', 12],
    ['capture.between-append-and-ack', 12],
    ['apply.before-commit', 12],
  ] as const) {
    it(`H1, H2: stopped right at ${point} and replaced, its step is in vain`, async (t) => {
      t.diagnostic(`CROSSFADE_SEED=${seed}`)
      await using pipeline = await prepared('kafka', 300)
      const copying = pipeline.run()
      await shows(copying, / streaming /)
      assert.equal((await copying.stop()).code, 0)
      const zombie = pipeline.run([], { CROSSFADE_FAILPOINT: `${point}:${passing}:stop` })
      const writers = startWriters(pipeline.source, { seed, writers: 3, pause: 3 })
      let successor: Worker
      let written: Awaited<ReturnType<typeof writers.stop>> | undefined
      try {
        await until(async () => ((await isStopped(zombie)) ? [] : ['it has not come there']), { seconds: 120 })
        successor = pipeline.run()
        await shows(successor, / streaming /)
      } finally {
        written = await writers.stop()
      }
      await until(async () => await compareShops(pipeline.source, pipeline.target, written), {
        seconds: 120,
        worker: successor,
      })
      await wakesInVain(pipeline, zombie, successor)
      const dropped = /dropped records of an earlier capture/.test(successor.output())
      t.diagnostic(`fault: stopped right at ${point}${dropped ? '; what it published then was not read' : ''}`)
      assert.deepEqual(await compareShops(pipeline.source, pipeline.target, written), [])
    })
  }

  it('H18: stopped within a batch, it is not waited for, and its half is undone', async (t) => {
    await using pipeline = await prepared('kafka', 500)
    const zombie = pipeline.run()
    await shows(zombie, / streaming /)
    // Its statement is prepared; now it waits for this lock in the middle of its transaction, the checkpoint's rows locked.
    await sql(pipeline.source, 'insert into basket values (800000, 1)')
    await until(async () => await compareShops(pipeline.source, pipeline.target, undefined), {
      seconds: 60,
      worker: zombie,
    })
    await using other = await connected(pipeline.target)
    await other.query('begin; lock table basket in share mode')
    await sql(pipeline.source, 'insert into basket select i, 1 from generate_series(800001, 800100) i')
    const waiting = async (): Promise<readonly number[]> => {
      const rows = await sql<{ pid: number }>(
        pipeline.target,
        `select pid from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database() and query not like '%crossfade.%'`,
      )
      return rows.map(({ pid }) => pid)
    }
    await until(async () => ((await waiting()).length > 0 ? [] : ['nobody waits']), { seconds: 60, worker: zombie })
    const stuck = await waiting()
    process.kill(zombie.pid, 'SIGSTOP')
    const successor = pipeline.run()
    await shows(successor, 'taken over')
    await shows(successor, 'ended the stuck session of a former worker')
    // While what it waited for is still locked.
    await until(
      async () => ((await waiting()).some((pid) => stuck.includes(pid)) ? ['its session is still there'] : []),
      { seconds: 60, worker: successor },
    )
    await other.query('rollback')
    await until(async () => await compareShops(pipeline.source, pipeline.target, undefined), {
      seconds: 120,
      worker: successor,
    })
    await wakesInVain(pipeline, zombie, successor)
    t.diagnostic('fired: stopped within a batch')
    assert.deepEqual(await compareShops(pipeline.source, pipeline.target, undefined), [])
  })

  it('H22: stopped while it copies and replaced, its chunks are copied once', async (t) => {
    t.diagnostic(`CROSSFADE_SEED=${seed}`)
    await using pipeline = await prepared('kafka', 20_000)
    const writers = startWriters(pipeline.source, { seed, writers: 2, pause: 5 })
    const zombie = pipeline.run()
    const chunks = async (more: string): Promise<number> =>
      (await sql(pipeline.target, `select from crossfade.chunk ${more}`).catch(() => [])).length
    await until(async () => ((await chunks('')) > 0 ? [] : ['no chunk yet']), { seconds: 120, worker: zombie })
    // Until then the copy cannot end.
    await using other = await connected(pipeline.target)
    await other.query('begin; lock table visit in share mode')
    await until(async () => ((await chunks('where done')) > 2 ? [] : ['too few chunks']), {
      seconds: 120,
      worker: zombie,
    })
    process.kill(zombie.pid, 'SIGSTOP')
    await other.query('rollback')
    const [at] = await sql<{ done: string; all: string }>(
      pipeline.target,
      'select count(*) filter (where done) as done, count(*) as all from crossfade.chunk',
    )
    assert.doesNotMatch(zombie.output(), / streaming /)
    const successor = pipeline.run()
    await shows(successor, / streaming /)
    const written = await writers.stop()
    await until(async () => await compareShops(pipeline.source, pipeline.target, written), {
      seconds: 120,
      worker: successor,
    })
    await wakesInVain(pipeline, zombie, successor)
    t.diagnostic(`fired: stopped while copying, ${at?.done} chunks done of ${at?.all} begun`)
    assert.deepEqual(await compareShops(pipeline.source, pipeline.target, written), [])
  })

  it('through the embedded log it keeps the place of its own, and goes on when it wakes up', async (t) => {
    t.diagnostic(`CROSSFADE_SEED=${seed}`)
    await using pipeline = await prepared('embedded', 3000)
    const writers = startWriters(pipeline.source, { seed, writers: 2, pause: 5 })
    const zombie = pipeline.run()
    await shows(zombie, / streaming /)
    await sleep(500 + (seed % 1000))
    process.kill(zombie.pid, 'SIGSTOP')
    const other = pipeline.run()
    const end = await other.ended
    assert.equal(end.code, 1, other.output())
    assert.match(end.stderr, /^✗ LOG_IN_USE /m)
    assert.match(end.stderr, new RegExp(`/${zombie.pid}\\b`))
    process.kill(zombie.pid, 'SIGCONT')
    const written = await writers.stop()
    await until(async () => await compareShops(pipeline.source, pipeline.target, written), {
      seconds: 120,
      worker: zombie,
    })
    assert.equal((await zombie.stop()).code, 0)
    t.diagnostic('fired: stopped while streaming, and its lease taken')
  })
})

describe('two processes started at once for one pipeline', { ...needs('pg', 'kafka'), concurrency: 2 }, () => {
  for (const log of ['kafka', 'embedded'] as const) {
    it(`one runs, the other stands by and takes over: ${log}`, async (t) => {
      t.diagnostic(`CROSSFADE_SEED=${seed}`)
      await using pipeline = await prepared(log, 2000)
      const writers = startWriters(pipeline.source, { seed, writers: 2, pause: 5 })
      const both = [pipeline.run(), pipeline.run()]
      const which = async (text: string | RegExp): Promise<number> => {
        let found = -1
        await until(
          async () => {
            for (const worker of both) {
              const early = await Promise.race([worker.ended, sleep(1)])
              assert.equal(early, undefined, worker.output())
            }
            found = both.findIndex((worker) => worker.output().search(text) >= 0)
            return found >= 0 ? [] : [`none says ${text}:\n${both.map((worker) => worker.output()).join('\n')}`]
          },
          { seconds: 120 },
        )
        return found
      }
      const running = await which(/ streaming /)
      const standing = await which('standing by until it ends')
      assert.notEqual(running, standing)
      const [first, second] = [both[running], both[standing]]
      assert.ok(first && second)
      assert.doesNotMatch(second.output(), / copying | streaming /)
      assert.deepEqual((await leftAtSource(pipeline)).length, 2)
      await first.kill9()
      await shows(second, / streaming /)
      const written = await writers.stop()
      await until(async () => await compareShops(pipeline.source, pipeline.target, written), {
        seconds: 120,
        worker: second,
      })
      assert.equal((await second.stop()).code, 0)
      t.diagnostic(`fired: two at once, the one that ran was killed, through the ${log} log`)
    })
  }
})
