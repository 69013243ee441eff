import assert from 'node:assert/strict'
import { globSync, mkdtempSync, rmSync, statSync, truncateSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, test } from 'node:test'
import type { Mode, PipelineConfig } from '../../src/config/pipeline-config.ts'
import type { Connector, Source } from '../../src/connector.ts'
import { memoryStore } from '../../src/coordinate/state-store.ts'
import { asFailure, Failure } from '../../src/errors.ts'
import { checkPipeline, readStatus } from '../../src/inspect.ts'
import { silent, type Logger } from '../../src/logger.ts'
import { tableName } from '../../src/model.ts'
import { runPipeline } from '../../src/pipeline.ts'
import type { Status } from '../../src/status.ts'
import { noLeaks } from '../support/leaks.ts'
import { memorySink } from '../support/memory-sink.ts'
import { memorySource } from '../support/memory-source.ts'
import { until } from '../support/processes.ts'
import { items, orders, tables, writer } from './snapshot/memory-way.ts'

noLeaks()

let dir = ''
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'crossfade-pipeline-'))
})
afterEach(() => rmSync(dir, { recursive: true }))

const unreachable = (): Failure => new Failure('SERVER_UNREACHABLE', { observed: 'injected' })

/** What outlives a worker: both databases and the state store. Each `run` is a worker of its own. */
function world() {
  const database = memorySource(tables)
  const sink = memorySink()
  const store = memoryStore()
  /** Runs before each call of the source that is named; what it throws is the call's. */
  const hooks: { [call in 'tables' | 'retain' | 'retained' | 'release' | 'open' | 'ddl']?: () => unknown } = {}
  const calls = { release: 0, snapshot: 0, retain: 0 }
  const openSource = (): Source => {
    const source = database.open()
    const { ddl } = hooks
    return {
      ...source,
      ...(ddl && {
        async ddl() {
          await ddl()
          return { dialect: 'memory', content: new Uint8Array(), notCopied: [] }
        },
      }),
      async tables(filter, signal) {
        await hooks.tables?.()
        signal.throwIfAborted()
        return await source.tables(filter, signal)
      },
      async retain(schemas, signal) {
        calls.retain++
        await hooks.retain?.()
        const snapshot = await source.retain(schemas, signal)
        await hooks.retained?.()
        return snapshot
      },
      async snapshot(signal) {
        calls.snapshot++
        return await source.snapshot(signal)
      },
      async release(signal) {
        await hooks.release?.()
        calls.release++
        await source.release(signal)
      },
    }
  }
  const connector: Connector = {
    name: 'memory',
    parse: (raw) => raw,
    async openSource() {
      await hooks.open?.()
      return openSource()
    },
    openSink: async () => sink,
    openStore: async () => store,
  }
  const config = (
    mode: Mode,
    exclude: readonly string[] = [],
    schema: PipelineConfig['snapshot']['schema'] = 'auto',
  ): PipelineConfig => ({
    name: 'shop',
    mode,
    source: { type: 'memory' },
    target: { type: 'memory' },
    tables: { include: ['*.*'], exclude: [...exclude] },
    ddl: 'stop',
    log: { type: 'embedded', dir: join(dir, 'log'), partitions: 3, maxMessageBytes: 64 * 2 ** 20 },
    snapshot: { parallel: 2, chunkRows: 10, schema },
    verify: { schedule: 'off', rate: 5000 },
    apply: { lanes: 2, batchRows: 100, batchBytes: 1e6 },
    dir,
  })
  for (let n = 0; n < 25; n++) database.commit({ kind: 'insert', table: orders, row: [`${n}`, `o${n}`, null, '1'] })
  for (let n = 0; n < 12; n++) database.commit({ kind: 'insert', table: items, row: [`${n}`, `i${n}`, 'large', '1'] })
  const contents = (of: 'source' | 'target'): unknown =>
    tables.map(({ table }) => (of === 'source' ? database : sink).rows(table).map(String).toSorted())
  return {
    database,
    sink,
    store,
    hooks,
    calls,
    contents,
    config,
    equal: async () => {
      await until(() => JSON.stringify(contents('target')) === JSON.stringify(contents('source')), 10_000)
      assert.deepEqual(contents('target'), contents('source'))
    },
    status: async (mode: Mode) =>
      await readStatus(config(mode), async () => connector, silent, AbortSignal.timeout(5000)),
    check: async (mode: Mode = 'hybrid', exclude: readonly string[] = []) =>
      await checkPipeline(config(mode, exclude), async () => connector, silent, AbortSignal.timeout(5000)),
    run: (
      mode: Mode,
      exclude: readonly string[] = [],
      log: Logger = silent,
      schema: PipelineConfig['snapshot']['schema'] = 'auto',
    ) => {
      const stop = new AbortController()
      const statuses: Status[] = []
      const watch = (status: Status): void => void statuses.push(status)
      const signal = AbortSignal.timeout(40_000)
      const ended = runPipeline(config(mode, exclude, schema), async () => connector, log, {
        stop: stop.signal,
        signal,
        watch,
      })
      ended.catch(() => {}) // reported by whoever awaits it
      return {
        ended,
        statuses,
        phase: async (phase: Status['phase']) => {
          const there = (): boolean => statuses.at(-1)?.phase === phase
          const reached = await Promise.race([until(there, 15_000), ended.then(there)])
          assert.ok(reached, `${statuses.at(-1)?.phase}, not ${phase}`)
        },
        stop: async () => {
          stop.abort(new Failure('INTERRUPTED'))
          return await ended
        },
      }
    },
  }
}

test('a full pipeline ends complete on one exact state of the source, and leaves nothing there', async () => {
  const { run, contents, database, calls, status, hooks, sink } = world()
  const write = writer(database)
  let snapshot: unknown
  hooks.retained = () => {
    snapshot = contents('source')
    for (let n = 0; n < 20; n++) write()
  }
  const { ended, statuses } = run('full')
  assert.equal(await ended, 'complete')
  assert.deepEqual(contents('target'), snapshot)
  const checkpoints = await sink.checkpoints(AbortSignal.timeout(1000))
  assert.ok(checkpoints.length > 0 && checkpoints.every(({ hold }) => hold !== undefined))
  assert.equal(statuses.at(-1)?.phase, 'complete')
  assert.equal(calls.release, 1)
  await assert.rejects(
    database.open().changes('' as never, AbortSignal.timeout(1000)),
    (error) => asFailure(error).code === 'SLOT_LOST',
  )
  const rows = (contents('target') as readonly unknown[][]).map(({ length }) => BigInt(length))
  for (const { phase, verdict, tables, target } of [statuses.at(-1), await status('full')].flatMap(
    (one) => one ?? [],
  )) {
    assert.deepEqual([phase, verdict], ['complete', 'ok'])
    assert.deepEqual(
      tables.map(({ state, chunks, chunksDone }) => [state, chunks - chunksDone]),
      tables.map(() => ['copied', 0]),
    )
    assert.deepEqual(new Set(tables.map(({ rows }) => rows)), new Set(rows))
    assert.match(target.position ?? '', /./)
  }
})

test('a full pipeline that is complete does nothing when it is run again', async () => {
  const { run, contents, database, calls } = world()
  await run('full').ended
  const copied = contents('target')
  database.commit({ kind: 'insert', table: orders, row: ['900', 'later', null, null] })
  const again = run('full')
  assert.equal(await again.ended, 'complete')
  assert.equal(again.statuses.at(-1)?.phase, 'complete')
  assert.equal(
    again.statuses.at(-1)?.tables.reduce((sum, { rows }) => sum + rows, 0n),
    37n,
  )
  assert.deepEqual(contents('target'), copied)
  assert.equal(calls.retain, 1)
})

test('a worker that stood by while a full pipeline was completed copies nothing again', async () => {
  const { run, contents, database, calls, hooks } = world()
  const entered = Promise.withResolvers<void>()
  const go = Promise.withResolvers<void>()
  hooks.tables = () => {
    entered.resolve()
    return go.promise
  }
  const first = run('full')
  await entered.promise
  const second = run('full')
  await second.phase('standby')
  go.resolve()
  assert.equal(await first.ended, 'complete')
  const copied = contents('target')
  database.commit({ kind: 'insert', table: orders, row: ['900', 'later', null, null] })
  assert.equal(await second.ended, 'complete')
  assert.equal(calls.retain, 1)
  assert.deepEqual(contents('target'), copied)
})

test('a release that fails is tried again, and the copy stays as it was', async () => {
  const { run, contents, database, calls, hooks } = world()
  let copied: unknown
  hooks.release = () => {
    if (copied !== undefined) return
    copied = contents('target')
    database.commit({ kind: 'insert', table: orders, row: ['900', 'later', null, null] })
    throw unreachable()
  }
  assert.equal(await run('full').ended, 'complete')
  assert.deepEqual(contents('target'), copied)
  assert.deepEqual([calls.release, calls.retain], [1, 1])
})

test('a hybrid pipeline copies under changes, streams, stops, and goes on where it was', async () => {
  const { run, equal, database, sink } = world()
  const write = writer(database)
  for (let worker = 0; worker < 3; worker++) {
    const { phase, stop, statuses } = run('hybrid')
    write()
    await phase('streaming')
    for (let n = 0; n < 20; n++) write()
    await equal()
    assert.equal(await stop(), 'stopped')
    assert.deepEqual(
      statuses.slice(-2).map(({ phase }) => phase),
      ['stopping', 'stopped'],
    )
    for (let n = 0; n < 5; n++) write()
  }
  assert.ok([...sink.effects.values()].every((times) => times === 1))
})

test('a table that is left out stays as it is, and is copied anew when it is taken in again', async () => {
  const { run, equal, database, sink, contents } = world()
  const write = writer(database)
  const first = run('hybrid')
  await first.phase('streaming')
  for (let n = 0; n < 20; n++) write()
  await equal()
  // A truncate of both stands in the log, not applied, when one of them is left out.
  sink.inject('arrive', { kind: 'reject' }, 1000)
  sink.inject('apply', { kind: 'slow', ms: 1 }, 100)
  const emptied = database.commit({ kind: 'truncate', tables: [orders, items] })
  assert.ok(await until(() => database.acknowledged >= emptied, 10_000))
  await first.stop()
  sink.inject('arrive', { kind: 'reject' }, -1)
  const left = sink.rows(orders.table)
  assert.ok(left.length > 0)
  for (let n = 0; n < 20; n++) write()

  sink.inject('leave', { kind: 'failAfterWrite' })
  await assert.rejects(run('hybrid', ['*.orders']).ended, (error) => asFailure(error).code === 'SERVER_UNREACHABLE')
  for (let worker = 0; worker < 2; worker++) {
    const second = run('hybrid', ['*.orders'])
    await second.phase('streaming')
    for (let n = 0; n < 20; n++) write()
    const others = (of: 'source' | 'target'): string =>
      JSON.stringify((contents(of) as unknown[]).filter((_, i) => tables[i] !== orders))
    assert.ok(await until(() => others('target') === others('source'), 10_000), others('target'))
    assert.ok(await until(() => second.statuses.at(-1)?.lag.proved === true, 5000), 'no lag is proved')
    await second.stop()
    assert.deepEqual(sink.rows(orders.table), left)
    assert.deepEqual(
      second.statuses
        .at(-1)
        ?.tables.map(({ name }) => name)
        .includes('public.orders'),
      false,
    )
  }

  const third = run('hybrid')
  for (let n = 0; n < 5; n++) write()
  await third.phase('streaming')
  for (let n = 0; n < 20; n++) write()
  await equal()
  await third.stop()
})

test('every partition is held before the source begins to keep changes', async () => {
  const { run, hooks, sink } = world()
  const held: boolean[] = []
  hooks.retain = async () => {
    for (const { hold } of await sink.checkpoints(AbortSignal.timeout(1000))) held.push(hold !== undefined)
  }
  await run('full').ended
  assert.deepEqual(
    held,
    tables.map(() => true),
  )
})

for (const mode of ['incremental', 'hybrid'] as const)
  for (const step of ['retain', 'retained'] as const)
    test(`what a first ${mode} start noted before it failed (${step}) counts for nothing in later ones, wherever they die`, async () => {
      const { run, hooks, sink, equal } = world()
      const dies = async (of: Mode): Promise<void> => {
        await assert.rejects(run(of).ended, (error) => asFailure(error).code === 'SERVER_UNREACHABLE')
      }
      hooks[step] = () => {
        throw unreachable()
      }
      await dies(mode)
      delete hooks[step]
      for (const call of ['leave', 'setCopies'] as const)
        for (const kind of ['reject', 'failAfterWrite'] as const) {
          sink.inject(call, { kind })
          await dies(mode)
        }
      const without = run('hybrid', ['*.orders'])
      await without.phase('streaming')
      const signal = AbortSignal.timeout(1000)
      const copies = await sink.copies(signal)
      assert.deepEqual(copies.map(({ table }) => tableName(table)).includes(tableName(orders.table)), false)
      assert.ok((await sink.checkpoints(signal)).every(({ topic }) => topic !== 'shop.public.orders'))
      await without.stop()
      const all = run('hybrid')
      await all.phase('streaming')
      await equal()
      await all.stop()
    })

for (const mode of ['hybrid', 'full'] as const)
  test(`a first incremental start that failed is no reason to copy nothing in mode ${mode}`, async () => {
    const { run, hooks, equal } = world()
    hooks.retain = () => {
      throw unreachable()
    }
    await assert.rejects(run('incremental').ended, (error) => asFailure(error).code === 'SERVER_UNREACHABLE')
    delete hooks.retain
    const next = run(mode)
    await next.phase(mode === 'full' ? 'complete' : 'streaming')
    await equal()
    await next.stop()
  })

test('lag is told once it is proved, and unknown while tables are copied', async () => {
  const { run, equal } = world()
  const { phase, stop, statuses } = run('hybrid')
  await phase('streaming')
  await equal()
  assert.ok(await until(() => statuses.at(-1)?.lag.proved === true, 4000))
  for (const { phase, lag, verdict } of statuses.filter((status) => status.phase !== 'streaming')) {
    assert.deepEqual([lag.seconds, lag.proved, verdict], [null, false, 'unknown'], phase)
  }
  const last = statuses.at(-1)
  assert.ok(last?.lag.proved && last.lag.seconds !== null && last.lag.seconds < 5)
  assert.ok(last.tables.every(({ state, chunks, chunksDone }) => state === 'live' && chunksDone === chunks))
  await stop()
})

test('an incremental pipeline copies nothing, and applies what changes from its start on', async () => {
  const { run, database, sink } = world()
  const { phase, stop } = run('incremental')
  await phase('streaming')
  database.commit({ kind: 'insert', table: orders, row: ['900', 'new', null, null] })
  assert.ok(await until(() => sink.rows(orders.table).length > 0, 10_000))
  assert.deepEqual(sink.rows(orders.table), [['900', 'new', null, null]])
  assert.equal(await stop(), 'stopped')
})

test('an incremental pipeline refuses a table that it did not follow, before it writes anything; hybrid copies it', async () => {
  const { run, check, contents, database, sink, store, equal, calls } = world()
  const begin = run('incremental')
  await begin.phase('streaming')
  await begin.stop()
  const out = run('incremental', ['*.orders'])
  await out.phase('streaming')
  await out.stop()
  database.commit({ kind: 'insert', table: orders, row: ['900', 'while it was left out', null, null] })

  const signal = AbortSignal.timeout(5000)
  const written = async (): Promise<unknown> => {
    const state = (await store.list('', signal)).filter(({ key }) => key !== 'run' && !key.startsWith('lease/'))
    return [state, await sink.copies(signal), calls.retain]
  }
  const before = await written()
  await assert.rejects(run('incremental').ended, (error) => {
    const { code, facts } = asFailure(error)
    assert.equal(code, 'CHECK_FAILED')
    const [told] = facts.all ?? []
    assert.equal(told?.object, 'tables.added')
    assert.match(told?.observed ?? '', /^public\.orders is not followed so far/)
    assert.match(told?.next ?? '', /mode: hybrid/)
    return true
  })
  assert.deepEqual(await written(), before)
  const blockers = async (mode: Mode, exclude: readonly string[] = []): Promise<readonly string[]> =>
    (await check(mode, exclude)).filter(({ level }) => level === 'blocker').map(({ id }) => id)
  assert.deepEqual(await blockers('incremental'), ['tables.added'])
  assert.deepEqual(await blockers('incremental', ['*.orders']), [])

  database.commit({ kind: 'truncate', tables: [items] }) // the target never had its rows
  const copied = run('hybrid')
  await copied.phase('streaming')
  await equal()
  assert.ok(JSON.stringify(contents('target')).includes('while it was left out'))
  await copied.stop()
  const again = run('incremental')
  await again.phase('streaming')
  await again.stop()
})

test('a stop while it is set up ends it at once, and the next run begins', async () => {
  const { run, hooks, equal } = world()
  const entered = Promise.withResolvers<void>()
  const held = Promise.withResolvers<void>()
  hooks.tables = () => {
    entered.resolve()
    return held.promise
  }
  const first = run('hybrid')
  await entered.promise
  const stopped = first.stop()
  held.resolve()
  assert.equal(await stopped, 'stopped')
  delete hooks.tables
  const second = run('hybrid')
  await second.phase('streaming')
  await equal()
  await second.stop()
})

test('what hinders the start ends it with its own error, and leaves the lease free', async () => {
  const { run, hooks, equal } = world()
  hooks.tables = () => {
    throw unreachable()
  }
  const first = run('hybrid')
  await assert.rejects(first.ended, (error) => asFailure(error).code === 'SERVER_UNREACHABLE')
  assert.equal(first.statuses.at(-1)?.phase, 'failed')
  assert.equal(first.statuses.at(-1)?.verdict, 'failed')
  delete hooks.tables
  const began = performance.now()
  const second = run('hybrid')
  await second.phase('streaming')
  assert.ok(performance.now() - began < 4000, 'no lease had to run out')
  await equal()
  await second.stop()
})

test('tasks that fail are tried again, each by itself, and the rows are right', async () => {
  const { run, database, sink, equal } = world()
  const write = writer(database)
  sink.inject('load', { kind: 'reject' })
  sink.inject('apply', { kind: 'failAfterWrite' })
  sink.inject('claim', { kind: 'reject' })
  const { phase, stop, statuses } = run('hybrid')
  for (let n = 0; n < 10; n++) write()
  await phase('streaming')
  database.cut(unreachable())
  for (let n = 0; n < 10; n++) write()
  sink.inject('apply', { kind: 'reject' }, 2)
  await equal()
  const told = statuses.flatMap(({ error }) => error ?? [])
  assert.ok(told.length > 0 && told.every(({ code, retrying }) => code === 'SERVER_UNREACHABLE' && retrying))
  assert.equal(await stop(), 'stopped')
})

test('a lane that commits and is cut off, again and again, is opened again as soon as after the first time', async () => {
  const { run, database, sink, equal } = world()
  const waits: number[] = []
  const note = (facts: object): void => {
    if ('task' in facts && 'again' in facts && String(facts.task).startsWith('lane')) waits.push(Number(facts.again))
  }
  const write = writer(database)
  const { phase, stop } = run('hybrid', [], { ...silent, info: note, warn: note })
  await phase('streaming')
  sink.inject('apply', { kind: 'failAfterWrite' }, 12)
  while (waits.length < 12) {
    write()
    await equal()
  }
  assert.ok(Math.max(...waits) <= 200, `waited ${waits.join(', ')} ms`)
  assert.equal(await stop(), 'stopped')
})

test('a failure that no retry can help ends every task, and is the one that is told', async () => {
  const { run, database, sink } = world()
  const { phase, ended, statuses } = run('hybrid')
  await phase('streaming')
  sink.inject('apply', { kind: 'reject', error: new Failure('TARGET_DRIFTED', { object: 'public.orders' }) })
  database.commit({ kind: 'insert', table: orders, row: ['900', 'new', null, null] })
  await assert.rejects(ended, (error) => asFailure(error).code === 'TARGET_DRIFTED')
  const last = statuses.at(-1)
  assert.equal(last?.phase, 'failed')
  assert.equal(last?.verdict, 'failed')
  assert.deepEqual(last?.error && [last.error.code, last.error.retrying], ['TARGET_DRIFTED', false])
  assert.ok(last?.tables.every(({ state }) => state === 'stopped'))
})

test('whoever asks later is told how the last run ended, and how far the target is known to be', async () => {
  const { run, database, sink, status, equal, hooks } = world()
  const first = run('hybrid')
  await first.phase('streaming')
  await equal()
  assert.ok(await until(() => first.statuses.at(-1)?.lag.proved === true, 5000))
  assert.equal(await first.stop(), 'stopped')
  const stopped = await status('hybrid')
  assert.deepEqual([stopped.phase, stopped.verdict, stopped.error], ['stopped', 'unknown', null])
  assert.deepEqual(stopped.target, first.statuses.at(-1)?.target)
  assert.ok(stopped.target.position !== null && stopped.target.watermarkAt !== null)
  assert.deepEqual([stopped.lag.seconds, stopped.lag.proved], [null, false], 'what was proved then is no lag now')

  const second = run('hybrid')
  await second.phase('streaming')
  const cause = Object.assign(new Error('driver'), { detail: 'Key (id)=(secret row)' })
  sink.inject('apply', { kind: 'reject', error: new Failure('TARGET_DRIFTED', { object: 'public.orders', cause }) })
  database.commit({ kind: 'insert', table: orders, row: ['900', 'new', null, null] })
  const began = Date.now()
  await assert.rejects(second.ended)
  for (const { phase, verdict, error, target } of [await status('hybrid'), await status('hybrid')]) {
    assert.deepEqual([phase, verdict, error?.code, error?.retrying], ['failed', 'failed', 'TARGET_DRIFTED', false])
    assert.deepEqual(error?.facts, { object: 'public.orders' }, 'and no values of rows')
    assert.ok(error !== null && error.at >= began && error.at <= Date.now())
    assert.ok(target.position !== null)
  }
  hooks.tables = () => {
    throw new Failure('KEY_MISSING', { object: 'public.more' })
  }
  await assert.rejects(run('hybrid').ended)
  const again = await status('hybrid')
  assert.deepEqual([again.error?.code, again.error?.facts], ['KEY_MISSING', { object: 'public.more' }])
  assert.ok(again.target.position !== null, 'what was proved before stays known')
  delete hooks.tables
  const third = run('hybrid')
  await third.phase('streaming')
  await equal()
  await third.stop()
  assert.deepEqual([(await status('hybrid')).error, (await status('hybrid')).phase], [null, 'stopped'])

  const fourth = run('hybrid')
  await fourth.phase('streaming')
  for (let i = 0; i < 50; i++) sink.inject('apply', { kind: 'reject', error: new Failure('SERVER_UNREACHABLE') })
  database.commit({ kind: 'insert', table: orders, row: ['901', 'new', null, null] })
  assert.ok(await until(() => fourth.statuses.at(-1)?.error?.retrying === true, 5000))
  assert.equal(await fourth.stop(), 'stopped')
  assert.deepEqual([(await status('hybrid')).error, (await status('hybrid')).phase], [null, 'stopped'])
})

test('a lease that is lost is regained, and the next capture goes on', async () => {
  const { run, database, store, sink, equal } = world()
  const write = writer(database)
  const { phase, stop, statuses } = run('hybrid')
  await phase('streaming')
  const signal = AbortSignal.timeout(20_000)
  for (let taken = false; !taken;) {
    const found = await store.get('lease/capture', signal)
    const other = { owner: 'other', token: 'other', ttl: 1, free: true }
    taken = (await store.put('lease/capture', other, found?.revision ?? 0, signal)) !== undefined
  }
  while (!statuses.some(({ error }) => error?.code === 'LEASE_LOST')) {
    write()
    await until(() => false, 100)
  }
  await phase('streaming')
  write()
  await equal()
  const epochs = (await sink.checkpoints(signal)).map(({ captureEpoch }) => captureEpoch)
  assert.ok(Math.min(...epochs) > 1, 'the successor writes under a higher epoch')
  assert.equal(await stop(), 'stopped')
})

test('a stop while it waits to begin again ends it as stopped', async () => {
  const { run, store, hooks } = world()
  const { phase, stop, statuses } = run('hybrid')
  await phase('streaming')
  const signal = AbortSignal.timeout(20_000)
  hooks.open = () => {
    throw unreachable()
  }
  for (let taken = false; !taken;) {
    const found = await store.get('lease/capture', signal)
    const other = { owner: 'other', token: 'other', ttl: 1, free: true }
    taken = (await store.put('lease/capture', other, found?.revision ?? 0, signal)) !== undefined
  }
  const failed = (status: Status | undefined): boolean =>
    status?.phase === 'starting' && status.error?.code === 'SERVER_UNREACHABLE'
  assert.ok(await until(() => failed(statuses.at(-1)), 10_000))
  assert.equal(await stop(), 'stopped')
})

test('a table that was changed since it was recorded stops the pipeline before anything is captured', async () => {
  const before = world()
  const first = before.run('hybrid')
  await first.phase('streaming')
  await first.stop()
  const stored = await before.store.get(`table/${tableName(orders.table)}`, AbortSignal.timeout(1000))
  const old = stored?.value as { readonly schema: typeof orders }
  const changed = { ...old, schema: { ...old.schema, columns: old.schema.columns.slice(1) } }
  await before.store.put(`table/${tableName(orders.table)}`, changed, stored?.revision ?? 0, AbortSignal.timeout(1000))
  await assert.rejects(before.run('hybrid').ended, (error) => asFailure(error).code === 'TABLE_CHANGED')
})

test('some tables at the target and some not is for the operator to decide; all or none is decided once', async () => {
  const { run, sink, store } = world()
  const signal = AbortSignal.timeout(10_000)
  await sink.prepare([orders], 'before', undefined, signal)
  await assert.rejects(run('hybrid').ended, (error) => {
    const { code, facts } = asFailure(error)
    assert.equal(code, 'TARGET_SHAPE')
    assert.match(`${facts.object} ${facts.observed}`, /public.items.* 2 of 3 tables are missing/)
    return true
  })
  await sink.prepare(tables, 'before', undefined, signal)
  const { phase, stop } = run('hybrid')
  await phase('streaming')
  await stop()
  assert.equal((await store.get('schema-style', signal))?.value, 'none')
})

test('who makes the tables at the target is as the file says now, whatever was decided where it said nothing', async () => {
  const { run, hooks, store } = world()
  let asked = 0
  hooks.ddl = () => {
    asked++
    if (asked > 1) throw new Failure('TARGET_SHAPE', { next: 'Create it by hand, then run with snapshot.schema: none' })
  }
  await assert.rejects(run('hybrid').ended, (error) => asFailure(error).code === 'TARGET_SHAPE')
  assert.equal((await store.get('schema-style', AbortSignal.timeout(1000)))?.value, 'dump')
  const next = run('hybrid', [], silent, 'none')
  await next.phase('streaming')
  await next.stop()
  assert.equal(asked, 2)
})

test('a topic that was made anew under its old name is not taken for the log', async () => {
  const { run } = world()
  const first = run('hybrid')
  await first.phase('streaming')
  await first.stop()
  rmSync(join(dir, 'log'), { recursive: true })
  await assert.rejects(run('hybrid').ended, (error) => asFailure(error).code === 'TOPIC_MISMATCH')
})

test('the preflight tells of a server that does not answer as a finding, beside the others', async () => {
  const { check, hooks } = world()
  assert.ok((await check()).every(({ level }) => level !== 'blocker'))
  hooks.open = () => {
    throw unreachable()
  }
  const findings = await check()
  const blocker = findings.find(({ level }) => level === 'blocker')
  assert.equal(blocker?.id, 'source')
  assert.match(blocker?.observed ?? '', /^SERVER_UNREACHABLE: injected/)
  assert.ok((blocker?.remedy ?? '').length > 10)
})

test('H23: a log that lost its end, which the target had not reached, is not written on', async () => {
  const { run, sink, database, equal } = world()
  const first = run('hybrid')
  await first.phase('streaming')
  await equal()
  const [file = ''] = globSync(join(dir, 'log/shop/topics/shop.public.orders/0-*.log'))
  const { size } = statSync(file)
  sink.inject('apply', { kind: 'reject', error: unreachable() }, 1000)
  for (const n of [101, 102]) {
    const before = database.acknowledged
    database.commit({ kind: 'insert', table: orders, row: [`${n}`, 'lost', null, '1'] })
    assert.ok(await until(() => database.acknowledged > before, 10_000), 'nothing was acknowledged')
  }
  await first.stop()
  sink.inject('apply', { kind: 'reject', error: unreachable() }, -1)
  assert.ok(statSync(file).size > size)
  truncateSync(file, size)
  await assert.rejects(run('hybrid').ended, (error) => asFailure(error).code === 'LOG_DAMAGED')
})
