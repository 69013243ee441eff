import assert from 'node:assert/strict'
import { execFile, spawnSync } from 'node:child_process'
import { describe, it } from 'node:test'
import { promisify } from 'node:util'
import { Kafka, logLevel } from 'kafkajs'
import { logConfig } from '../support/kills.ts'
import { sql, startPostgres } from '../support/postgres.ts'
import { createThings, keepsSecret, scene, untilEqual, type Scene } from '../support/scene.ts'
import { kafka, needs, postgres } from '../support/servers.ts'
import { connected } from '../support/shop.ts'
import { until, type Ended, type Worker } from '../support/worker.ts'

async function prepared(options: Partial<Parameters<typeof scene>[0]> = {}): Promise<Scene> {
  const pg = await postgres(18)
  const [source, target] = [await pg.database('stops_source'), await pg.database('stops_target')]
  await createThings(source)
  return await scene({ source, target, mode: 'hybrid', ...options })
}
/** Ends by itself with one error of this code; says what and what next. */
async function assertEnds(worker: Worker, code: string, ...told: readonly RegExp[]): Promise<Ended> {
  const seconds = AbortSignal.timeout(80_000)
  const { promise, reject } = Promise.withResolvers<never>()
  seconds.addEventListener('abort', () => reject(new Error(`it still runs:\n${worker.output()}`)), { once: true })
  const end = await Promise.race([worker.ended, promise])
  assert.equal(end.code, 1, end.stdout + end.stderr)
  const headings = end.stderr.match(/^✗ .*$/gm) ?? []
  assert.equal(headings.length, 1, end.stderr)
  assert.match(headings[0] ?? '', new RegExp(`^✗ ${code} `))
  const failure = end.stderr.slice(end.stderr.indexOf('✗ '))
  for (const each of told) assert.match(failure, each)
  assert.match(failure, /^ {4}next +\S/m)
  assert.doesNotMatch(end.stderr, / trace /)
  keepsSecret(end)
  return end
}

describe('what nobody may change under a pipeline', { ...needs('pg'), concurrency: 3 }, () => {
  it('is its slot: dropped by others, it ends with SLOT_LOST', async () => {
    await using pipeline = await prepared()
    const worker = pipeline.run()
    await untilEqual(pipeline, worker)
    const slot = `crossfade_${pipeline.name}`
    await until(
      async () =>
        await sql(
          pipeline.source,
          `select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = '${slot}' and active`,
        )
          .then(async () => await sql(pipeline.source, `select pg_drop_replication_slot('${slot}')`))
          .then(
            () => [],
            (error: unknown) => [String(error)],
          ),
      { seconds: 20, worker },
    )
    await assertEnds(worker, 'SLOT_LOST', new RegExp(`object +slot ${slot}`), /observed +it does not exist/)
  })

  it('is its publication: a table taken out of it ends with PUBLICATION_CHANGED', async () => {
    await using pipeline = await prepared()
    const worker = pipeline.run()
    await untilEqual(pipeline, worker)
    await sql(pipeline.source, `alter publication crossfade_${pipeline.name} drop table thing`)
    await sql(pipeline.source, `insert into thing values (5001, 'nobody hears of it')`)
    await assertEnds(
      worker,
      'PUBLICATION_CHANGED',
      new RegExp(`crossfade_${pipeline.name}`),
      /public\.thing is no longer/,
    )
    // And again at the next start, as long as it is so.
    await assertEnds(pipeline.run(), 'PUBLICATION_CHANGED')
  })

  it('is the shape of a table: a new column ends with TABLE_CHANGED, and nothing wrong is applied', async () => {
    await using pipeline = await prepared()
    const worker = pipeline.run()
    await untilEqual(pipeline, worker)
    await sql(
      pipeline.source,
      `begin; insert into thing values (5001, 'before'); alter table thing add column price int default 7;
       insert into thing values (5002, 'after', 9); commit; update thing set price = 1 where id = 1`,
    )
    await assertEnds(worker, 'TABLE_CHANGED', /object +public\.thing/, /price/)
    const rows = await sql(pipeline.target, `select id, name from thing where id > 5000 or id = 1 order by id`)
    assert.deepEqual(rows[0], { id: 1, name: 'thing 1' })
    assert.deepEqual(rows.slice(1), [{ id: 5001, name: 'before' }])
    await assertEnds(pipeline.run(), 'TABLE_CHANGED', /object +public\.thing/)
  })

  it('is a table of the target: dropped, it ends with an error that names it', async () => {
    await using pipeline = await prepared()
    const worker = pipeline.run()
    await untilEqual(pipeline, worker)
    await sql(pipeline.target, 'drop table thing')
    await sql(pipeline.source, `insert into thing values (5001, 'x')`)
    await assertEnds(worker, 'TABLE_MISSING', /public\.thing/)
  })

  it('is the rows of the target: one that is gone ends with an error that names the table', async () => {
    await using pipeline = await prepared()
    // Too long to be sent again when another column changes.
    await sql(
      pipeline.source,
      `alter table thing add column note text; alter table thing alter note set storage external`,
    )
    await sql(pipeline.source, `update thing set note = repeat('x', 10000) where id = 1`)
    const worker = pipeline.run()
    await untilEqual(pipeline, worker)
    await until(async () => (/ streaming /.test(worker.printed()) ? [] : ['not live yet']), { seconds: 20, worker })
    await sql(pipeline.target, 'delete from thing where id = 1')
    await sql(pipeline.source, `update thing set name = 'changed' where id = 1`)
    await assertEnds(worker, 'TARGET_DRIFTED', /public\.thing/)
    // Whoever took the row brings it back.
    await sql(pipeline.target, `insert into thing values (1, 'thing 1', repeat('x', 10000))`)
    const next = pipeline.run()
    await untilEqual(pipeline, next)
    assert.equal((await next.stop()).code, 0)
  })
})

describe('what a pipeline stands on', { ...needs('pg', 'kafka'), concurrency: 2 }, () => {
  it('is the log: records gone before they were applied end with LOG_GAP', async () => {
    await using pipeline = await prepared({ log: await logConfig('kafka', 1) })
    const worker = pipeline.run()
    await untilEqual(pipeline, worker)
    const topic = `${pipeline.name}.public.thing`
    const admin = new Kafka({ brokers: [...(await kafka()).brokers], logLevel: logLevel.NOTHING }).admin()
    await admin.connect()
    try {
      const end = async (): Promise<number> => Number((await admin.fetchTopicOffsets(topic))[0]?.high)
      const first = await end()
      await using other = await connected(pipeline.target)
      await other.query('begin; lock table thing in access exclusive mode')
      await sql(pipeline.source, `insert into thing select i, 'waits' from generate_series(5001, 5100) i`)
      await until(async () => ((await end()) >= first + 100 ? [] : ['not in the log yet']), { seconds: 20, worker })
      await worker.kill9()
      await admin.deleteTopicRecords({ topic, partitions: [{ partition: 0, offset: String(await end()) }] })
      await other.query('rollback')
      await assertEnds(pipeline.run(), 'LOG_GAP', new RegExp(topic.replaceAll('.', '\\.')))
      const rows = await sql(pipeline.target, 'select count(*)::int as n from thing where id > 5000')
      assert.deepEqual(rows, [{ n: 0 }])
    } finally {
      await admin.disconnect()
    }
  })

  const limits = spawnSync('prlimit', ['--version']).status === 0 ? undefined : 'prlimit missing'
  it('is space for the spool: without it the run waits, and goes on when there is some', { skip: limits }, async () => {
    // Transactions in progress are sent from the first bytes on.
    await using server = await startPostgres({ settings: { logical_decoding_work_mem: '64kB' } })
    const [source, target] = [await server.createDatabase('source'), await server.createDatabase('target')]
    await createThings(source)
    await using pipeline = await scene({ source, target, mode: 'hybrid', log: await logConfig('kafka', 1) })
    const worker = pipeline.run()
    await untilEqual(pipeline, worker)
    const largestFile = async (bytes: string): Promise<unknown> =>
      await promisify(execFile)('prlimit', ['--pid', String(worker.pid), `--fsize=${bytes}:`])
    await largestFile(String(1 << 20))
    await sql(source, `insert into thing select i, repeat(md5(i::text), 10) from generate_series(10001, 60000) i`)
    const told = async (): Promise<readonly string[]> =>
      worker.printed().includes('SPOOL_FULL, trying again') ? [] : ['no word of it']
    await until(told, { seconds: 80, worker })
    assert.match(worker.output(), /No space for transactions in progress[^\n]*\.crossfade[^\n]*EFBIG/)
    await largestFile('unlimited')
    await untilEqual(pipeline, worker, 60)
    const end = await worker.stop()
    assert.equal(end.code, 0, end.stderr)
  })
})
