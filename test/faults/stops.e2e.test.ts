import assert from 'node:assert/strict'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Kafka, logLevel } from 'kafkajs'
import { logConfig } from '../support/kills.ts'
import { sql } from '../support/postgres.ts'
import { createThings, leftAtSource, scene, untilEqual, type Scene } from '../support/scene.ts'
import { kafka, needs, postgres } from '../support/servers.ts'
import { connected } from '../support/shop.ts'
import { peakMemory, type Ended, type Worker } from '../support/worker.ts'

const seed = Number(process.env['CROSSFADE_SEED'] ?? Date.now() % 100_000)
const rounds = 100
/** Milliseconds in which two hundred are done, a hundred for each log, side by side. */
const limit = 600_000
const signals = ['SIGTERM', 'SIGINT', 'SIGHUP'] as const

describe('a worker that is stopped and started all the time', { ...needs('pg', 'kafka'), concurrency: 2 }, () => {
  for (const log of ['embedded', 'kafka'] as const) {
    it(`loses nothing and leaves nothing behind, ${log} log`, async (t) => {
      t.diagnostic(`CROSSFADE_SEED=${seed}`)
      const random = generator(seed)
      const shared = await postgres(18)
      const [source, target] = [await shared.database('stopped_source'), await shared.database('stopped_target')]
      await createThings(source, 20_000)
      await using pipeline = await scene({
        source,
        target,
        mode: 'hybrid',
        log: await logConfig(log),
        more: 'snapshot: { parallel: 2, chunkRows: 1000 }',
      })
      await using writer = startWriter(source, random)
      const [starts, stops, outcomes]: [number[], number[], Map<string, number>] = [[], [], new Map()]
      const peaks: number[] = []
      const first = performance.now()
      for (let round = 0; round < rounds; round++) {
        const began = performance.now()
        const worker = pipeline.run()
        const streaming = streams(worker).then((is) => is && starts.push(performance.now() - began))
        // Every third one has the time to stream.
        if (round % 3 === 0 && (await Promise.race([streaming, sleep(20_000, false)])) !== false)
          peaks.push(await peakMemory(worker.pid))
        await sleep(random() * 1500)
        const [once = 'SIGTERM', again = 'SIGINT'] = [pick(random, signals), pick(random, signals)]
        const asked = performance.now()
        process.kill(worker.pid, once)
        const twice = random() < 0.2
        if (twice) {
          await sleep(random() * 300)
          if (await isRunning(worker)) process.kill(worker.pid, again)
        }
        const end = await worker.ended
        stops.push(performance.now() - asked)
        const outcome = outcomeOf(end, twice)
        outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1)
      }
      const took = performance.now() - first
      const last = pipeline.run()
      await sleep(1000)
      const commits = await writer.stop()
      await untilEqual(pipeline, last)
      assert.equal((await last.stop()).code, 0)
      t.diagnostic(
        `${stops.length} stops, ${commits} commits; until streaming ${spread(starts)}; until ended ${spread(stops)}`,
      )
      const [early, late] = [peaks.slice(0, 8), peaks.slice(-8)].map((some) => Math.round(middle(some) / 2 ** 20))
      t.diagnostic(`peak memory ${early} MB at first, ${late} MB at last (medians of 8 of ${peaks.length})`)
      t.diagnostic([...outcomes].map(([outcome, times]) => `${outcome}: ${times}`).join('; '))
      await leavesNothing(pipeline, log)
      assert.ok(middle(stops) < 2000, `a stop takes ${Math.round(middle(stops))} ms`)
      assert.ok(took < limit, `${rounds} rounds took ${Math.round(took / 1000)} s`)
      assert.ok(peaks.length > 16 && Number(late) < 1.2 * Number(early), `${early} MB, then ${late} MB`)
    })
  }
})

/** Cleanly, or at once where it was asked to twice. A process that could not yet hear a signal dies of it. */
function outcomeOf({ code, signal, stdout, stderr }: Ended, twice: boolean): string {
  if (code === 0) return 'finished'
  if (twice && code !== null && [129, 130, 143].includes(code)) return 'at once'
  assert.ok(signal !== null && stdout + stderr === '', `ended with ${code} ${signal}:\n${stdout}${stderr}`)
  return 'before it began'
}

async function leavesNothing({ source, target, name, work }: Scene, log: 'embedded' | 'kafka'): Promise<void> {
  assert.deepEqual(await leftAtSource({ source, name }), [`slot crossfade_${name}`, `publication crossfade_${name}`])
  const ours = `select application_name || ' in ' || datname as what from pg_stat_activity
    where application_name like 'crossfade%' and datname = current_database()`
  for (const end of [source, target]) assert.deepEqual(await sql(end, ours), [])
  const files = (await readdir(join(work.dir, '.crossfade'), { recursive: true, withFileTypes: true }))
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(work.dir.length))
  if (log === 'kafka') {
    assert.deepEqual(files, [])
    const { brokers } = await kafka()
    const admin = new Kafka({ brokers: [...brokers], logLevel: logLevel.NOTHING }).admin()
    await admin.connect()
    const topics = (await admin.listTopics()).filter((topic) => topic.startsWith(`${name}.`))
    await admin.disconnect()
    assert.deepEqual(topics.toSorted(), [`${name}.control`, `${name}.public.thing`, `${name}.schemas`])
  } else assert.ok(files.length > 0 && files.every((file) => !file.includes('/source/')), files.join('\n'))
}

async function isRunning(worker: Worker): Promise<boolean> {
  return await Promise.race([worker.ended.then(() => false), sleep(0, true)])
}

async function streams(worker: Worker): Promise<boolean> {
  for (;;) {
    if (worker.printed().includes(' streaming ')) return true
    if (!(await isRunning(worker))) return false
    await sleep(20)
  }
}

/** Now and then a transaction that is spooled to disk, and sometimes aborted. */
function startWriter(url: string, random: () => number): AsyncDisposable & { stop(): Promise<number> } {
  let stopped = false
  let commits = 0
  const running = (async () => {
    await using client = await connected(url)
    await client.query(`set logical_decoding_work_mem = '64kB'`)
    while (!stopped) {
      const from = Math.floor(random() * 30_000)
      const many = random() < 0.02 ? 8000 : 20
      await client.query('begin')
      await client.query(
        `insert into thing select i, 'new' from generate_series($1::int, $2) i on conflict (id) do update set name = thing.name || '.'`,
        [from, from + many],
      )
      await client.query('delete from thing where id between $1 and $2', [from + 5, from + 8])
      await client.query(random() < 0.9 ? 'commit' : 'rollback')
      commits++
      await sleep(20)
    }
  })()
  const stop = async (): Promise<number> => {
    stopped = true
    await running
    return commits
  }
  return { stop, [Symbol.asyncDispose]: async () => void (await stop()) }
}

function middle(all: readonly number[]): number {
  return all.toSorted((a, b) => a - b)[all.length >> 1] ?? 0
}

function spread(all: readonly number[]): string {
  const sorted = all.toSorted((a, b) => a - b)
  const at = (part: number): string =>
    `${((sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))] ?? 0) / 1000).toFixed(1)} s`
  return `${at(0.5)}, at most ${at(1)} (${all.length})`
}

function pick<T>(random: () => number, from: readonly T[]): T | undefined {
  return from[Math.floor(random() * from.length)]
}

function generator(start: number): () => number {
  let state = start >>> 0
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 4294967296
  }
}
