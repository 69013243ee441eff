import assert from 'node:assert/strict'
import { after, before, describe, it, type TestContext } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { startKafka, type KafkaCluster } from '../support/kafka.ts'
import { sql } from '../support/postgres.ts'
import { startProxy, type Look, type Proxy } from '../support/proxy.ts'
import { scene, type Scene } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { compareShops, compareTables, createShop, loadShop, startWriters, type Writers } from '../support/shop.ts'
import { createTicks, startTicks, type Ticks } from '../support/ticks.ts'
import { until, type Worker } from '../support/worker.ts'

const seed = Number(process.env['CROSSFADE_SEED'] ?? Date.now() % 100_000)

/** Everything reaches the servers and takes effect there; what they answer is lost on the way, again and again while a shop is written to. */
describe('answers that never arrive', needs('pg', 'kafka'), () => {
  let cluster: KafkaCluster
  let toBroker: Proxy
  let toSource: Proxy
  let toTarget: Proxy
  let pipeline: Scene
  let worker: Worker
  let writers: Writers
  let ticks: Ticks
  const random = seeded(seed)

  before(async () => {
    const pg = await postgres(18)
    const brokers = new Map<number, Proxy>()
    const advertise = async (port: number): Promise<number> => {
      const proxy = await startProxy(port)
      brokers.set(port, proxy)
      return proxy.port
    }
    cluster = await startKafka({ advertise })
    const broker = brokers.get(Number(cluster.brokers[0]?.split(':')[1]))
    assert.ok(broker)
    toBroker = broker
    const [source, target] = [await pg.database('answers_source'), await pg.database('answers_target')]
    toSource = await startProxy(Number(new URL(source).port))
    toTarget = await startProxy(Number(new URL(target).port))
    await createShop(source)
    await loadShop(source, 5000)
    await createTicks(source)
    const log = `{ type: kafka, brokers: ["127.0.0.1:${toBroker.port}"], partitions: 2, replication: 1 }`
    pipeline = await scene({ source, target, mode: 'hybrid', log })
    const through = (url: string, { port }: Proxy): string => Object.assign(new URL(url), { port: String(port) }).href
    worker = pipeline.run([], { SOURCE_URL: through(source, toSource), TARGET_URL: through(target, toTarget) })
    await until(async () => await differences(), { seconds: 90, worker })
    writers = startWriters(source, { seed, writers: 2, pause: 8 })
    ticks = startTicks(source, target)
  })
  after(async () => {
    await ticks?.stop()
    await writers?.stop()
    await pipeline?.[Symbol.asyncDispose]()
    for (const each of [toBroker, toSource, toTarget, cluster]) await each?.[Symbol.asyncDispose]()
  })

  const differences = async (written?: Parameters<typeof compareShops>[2]): Promise<readonly string[]> =>
    await compareShops(pipeline.source, pipeline.target, written).catch((error: unknown) => [String(error)])

  /** Under this `look` until `enough`; then changes come through again. */
  async function under(
    t: TestContext,
    proxy: Proxy,
    { look, count, enough, fault }: { look: Look; count: () => number; enough: number; fault: string },
  ): Promise<void> {
    await ticks.through(60)
    ticks.worst()
    const commits = writers.acknowledged()
    proxy.watch(look)
    const deadline = performance.now() + 120_000
    while (count() < enough && performance.now() < deadline) await sleep(50)
    proxy.watch(undefined)
    assert.ok(count() >= enough, `${count()} only: ${worker.output().slice(-3000)}`)
    await ticks.through(90)
    const some = `${count()} times, beside ${writers.acknowledged() - commits} commits`
    t.diagnostic(`fault: ${fault}, ${some}; nothing came through for ${ticks.worst().toFixed(1)} s at most`)
    await until(async () => (worker.pid > 0 ? [] : ['no worker']), { seconds: 1, worker })
  }

  it('H30: the broker has appended, the connection breaks before it says so', async (t) => {
    const produce = producing()
    let cuts = 0
    const look: Look = (piece, isAnswer, connection) => {
      if (!produce(piece, isAnswer, connection) || random() > 0.15) return 'pass'
      cuts++
      return 'cut'
    }
    await under(t, toBroker, { look, count: () => cuts, enough: 60, fault: 'the answer to a produce request cut off' })
  })

  it('H30: the broker has appended, and its answer is swallowed by a connection that stays open', async (t) => {
    const produce = producing()
    let swallowed = 0
    const look: Look = (piece, isAnswer, connection) => {
      if (!produce(piece, isAnswer, connection) || swallowed >= 1) return 'pass'
      swallowed++
      return 'lose'
    }
    await under(t, toBroker, {
      look,
      count: () => swallowed,
      enough: 1,
      fault: 'the answer to a produce request lost',
    })
  })

  it('the target has committed, the connection breaks before it says so', async (t) => {
    const asked = new Map<number, number>()
    let cuts = 0
    const look: Look = (piece, isAnswer, connection) => {
      if (!isAnswer) {
        const batch = piece.length > 200 && piece.subarray(-5).equals(sync)
        asked.set(connection, batch ? 1 : 0)
        return 'pass'
      }
      if (asked.get(connection) !== 1 || !piece.subarray(-6).equals(ready) || random() > 0.1) return 'pass'
      asked.delete(connection)
      cuts++
      return 'cut'
    }
    await under(t, toTarget, { look, count: () => cuts, enough: 20, fault: 'the answer to a batch’s commit cut off' })
  })

  it('the acknowledgement to the source is lost, then the connection', async (t) => {
    let lost = 0
    let cuts = 0
    const look: Look = (piece, isAnswer) => {
      const status = !isAnswer && piece[0] === 0x64 && piece[5] === 0x72
      if (!status) return 'pass'
      if (++lost % 4 !== 0) return 'lose'
      cuts++
      return 'cut'
    }
    const confirmed = async (): Promise<unknown> =>
      (
        await sql(pipeline.source, `select confirmed_flush_lsn as at from pg_replication_slots where slot_name = $1`, [
          `crossfade_${pipeline.name}`,
        ])
      )[0]?.['at']
    const before = await confirmed()
    await under(t, toSource, { look, count: () => cuts, enough: 3, fault: 'status updates lost, then cut' })
    await until(async () => ((await confirmed()) === before ? ['nothing is acknowledged'] : []), {
      seconds: 30,
      worker,
    })
  })

  it('every answer of the target to anybody may be lost: state, leases, claims too', async (t) => {
    let cuts = 0
    const look: Look = (piece, isAnswer) => {
      if (!isAnswer || !piece.subarray(-6).equals(ready) || random() > 0.03) return 'pass'
      cuts++
      return 'cut'
    }
    await under(t, toTarget, { look, count: () => cuts, enough: 15, fault: 'any answer of the target cut off' })
  })

  it('nothing is lost or doubled by all that: contents, money and ledger', async (t) => {
    t.diagnostic(`CROSSFADE_SEED=${seed}`)
    await ticks.stop()
    const written = await writers.stop()
    const equal = async (): Promise<readonly string[]> => [
      ...(await differences(written)),
      ...(await compareTables(pipeline.source, pipeline.target, ['tick'])),
    ]
    await until(equal, { seconds: 90, worker })
    const end = await worker.stop()
    assert.equal(end.code, 0, end.stdout + end.stderr)
  })
})

const sync = Buffer.from([0x53, 0, 0, 0, 4])
const ready = Buffer.from([0x5a, 0, 0, 0, 5, 0x49])

/** True for a piece that answers a produce request: they have key 0, and are answered one by one. */
function producing(): (piece: Buffer, isAnswer: boolean, connection: number) => boolean {
  const asked = new Set<number>()
  return (piece, isAnswer, connection) => {
    if (isAnswer) return asked.delete(connection)
    if (piece.length > 12 && piece.readInt16BE(4) === 0) asked.add(connection)
    return false
  }
}

function seeded(from: number): () => number {
  let state = from >>> 0
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 4294967296
  }
}
