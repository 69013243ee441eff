import assert from 'node:assert/strict'
import { execFile, spawnSync } from 'node:child_process'
import { globSync, rmSync, statSync, truncateSync } from 'node:fs'
import { join } from 'node:path'
import { describe, it, type TestContext } from 'node:test'
import { promisify } from 'node:util'
import { sql } from '../support/postgres.ts'
import { assertRefusal, createThings, scene, untilEqual, type Scene } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { until } from '../support/worker.ts'

const limits = spawnSync('prlimit', ['--version']).status === 0 ? undefined : 'prlimit missing'

describe('the embedded log of a pipeline', { ...needs('pg'), concurrency: 2 }, () => {
  async function prepared(options: Partial<Parameters<typeof scene>[0]> = {}): Promise<Scene> {
    const pg = await postgres(18)
    const [source, target] = [await pg.database('embedded_source'), await pg.database('embedded_target')]
    await createThings(source, 500)
    return await scene({ source, target, mode: 'hybrid', ...options })
  }
  /** The data topic's newest file. */
  const segment = ({ work, name }: Scene): string => {
    const files = globSync(join(work.dir, '.crossfade/log', name, 'topics', `${name}.public.thing`, '0-*.log')).sort()
    assert.ok(files.length > 0)
    return files.at(-1) ?? ''
  }
  const insert = async ({ source }: Scene, from: number, to: number): Promise<unknown> =>
    await sql(source, `insert into thing select i, repeat(md5(i::text), 30) from generate_series(${from}, ${to}) i`)

  it('has no more space: the run waits, says so, and goes on when there is some', { skip: limits }, async (t) => {
    await using pipeline = await prepared()
    const worker = pipeline.run()
    await untilEqual(pipeline, worker)
    await insert(pipeline, 501, 1000)
    await untilEqual(pipeline, worker)
    const limit = async (bytes: string): Promise<unknown> =>
      await promisify(execFile)('prlimit', ['--pid', String(worker.pid), `--fsize=${bytes}:`])
    await limit(String(statSync(segment(pipeline)).size + 1000))
    const began = performance.now()
    await insert(pipeline, 1001, 1500)
    const told = async (): Promise<readonly string[]> =>
      worker.printed().includes('LOG_FULL, trying again') ? [] : ['no word of it']
    await until(told, { seconds: 60, worker })
    say(t, 'no space for the log: it says so', began)
    await insert(pipeline, 1501, 1600)
    await limit('unlimited')
    const back = performance.now()
    await untilEqual(pipeline, worker, 60)
    say(t, 'space again: equal', back)
    assert.equal((await worker.stop()).code, 0)
  })

  it('H29: its folder is removed while it runs: it stops and says so, and does not start again', async (t) => {
    await using pipeline = await prepared()
    const worker = pipeline.run()
    await untilEqual(pipeline, worker)
    rmSync(join(pipeline.work.dir, '.crossfade/log'), { recursive: true })
    const began = performance.now()
    await insert(pipeline, 501, 600)
    const end = await worker.ended
    say(t, 'the folder of the log removed', began)
    assert.match(end.stderr, /✗ LOG_DAMAGED /)
    assertRefusal(await pipeline.refused(), 'TOPIC_MISMATCH', 1)
  })

  it('H23: its disk lost acknowledged records: it does not start', async (t) => {
    await using pipeline = await prepared()
    const worker = pipeline.run()
    await untilEqual(pipeline, worker)
    await insert(pipeline, 501, 1000)
    await untilEqual(pipeline, worker)
    await worker.kill9()
    truncateSync(segment(pipeline), Math.floor(statSync(segment(pipeline)).size / 2))
    await insert(pipeline, 1001, 1100)
    const began = performance.now()
    assertRefusal(await pipeline.refused(), 'LOG_DAMAGED', 1)
    say(t, 'half of the newest file gone after SIGKILL', began)
    assert.deepEqual(await sql(pipeline.target, 'select count(*)::int as n from thing'), [{ n: 1000 }])
  })

  it('belongs to one process: another pipeline of the same name and folder is refused', async () => {
    await using pipeline = await prepared()
    const worker = pipeline.run()
    await untilEqual(pipeline, worker)
    const log = `{ type: embedded, dir: "${join(pipeline.work.dir, '.crossfade/log')}", partitions: 2 }`
    await using other = await prepared({ name: pipeline.name, log })
    const refusal = await other.refused()
    assertRefusal(refusal, 'LOG_IN_USE', 1)
    assert.match(refusal.error.observed ?? '', new RegExp(`${worker.pid}`))
    await insert(pipeline, 501, 510)
    await untilEqual(pipeline, worker)
    assert.equal((await worker.stop()).code, 0)
  })
})

function say(t: TestContext, fault: string, began: number): void {
  t.diagnostic(`fault: ${fault} after ${((performance.now() - began) / 1000).toFixed(1)} s`)
}
