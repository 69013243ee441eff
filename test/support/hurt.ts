import assert from 'node:assert/strict'
import type { TestContext } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Proxy } from './proxy.ts'
import { scene, type Scene } from './scene.ts'
import { compareShops, createShop, loadShop, startWriters, type Writers } from './shop.ts'
import { until, type Worker } from './worker.ts'

/** Of tests that choose at random; printed by them. */
export const seed: number = Number(process.env['CROSSFADE_SEED'] ?? Date.now() % 100_000)

/** A shop between two databases, streaming, both ends equal. */
export interface ShopPipeline extends AsyncDisposable {
  readonly scene: Scene
  worker: Worker
  /** Starts a worker in place of one that has ended. */
  run(): Worker
  equal(): Promise<void>
  /** Writes, hurts, writes on, and measures how long both ends take to be equal from the healing on: `hurt` resolves when all is healed. */
  hurt(t: TestContext, what: string, hurt: () => Promise<void>, options?: HurtOptions): Promise<number>
  /** Ends the worker, which must end well. */
  end(): Promise<void>
}
type HurtOptions = {
  /** The longest recovery, in seconds. */
  readonly within?: number
  /** Commits before and after the fault. */
  readonly commits?: number
  /** Between two commits of a writer, in ms. */
  readonly pause?: number
}

export async function shopPipeline(
  options: Parameters<typeof scene>[0] & { readonly rows?: number; readonly env?: NodeJS.ProcessEnv },
): Promise<ShopPipeline> {
  const { rows = 2000, env = {}, ...rest } = options
  await createShop(rest.source)
  await loadShop(rest.source, rows)
  const pipeline = await scene({ mode: 'hybrid', ...rest })
  let first = 0
  let written: Awaited<ReturnType<Writers['stop']>> = { sure: new Set(), unknown: new Set() }
  const self: ShopPipeline = {
    scene: pipeline,
    worker: pipeline.run([], env),
    run() {
      self.worker = pipeline.run([], env)
      return self.worker
    },
    async equal() {
      await until(async () => await wrong(), { seconds: 90, worker: self.worker })
    },
    async hurt(t, what, hurt, { within = 60, commits: wanted = 20, pause = 20 } = {}) {
      const writers = startWriters(pipeline.source, { writers: 2, pause, seed, first })
      first += 2
      let healed = 0
      try {
        await commits(writers, wanted)
        await hurt()
        healed = performance.now()
        await commits(writers, wanted)
      } catch (error) {
        await writers.stop()
        throw error
      }
      const now = await writers.stop()
      written = {
        sure: new Set([...written.sure, ...now.sure]),
        unknown: new Set([...written.unknown, ...now.unknown]),
      }
      await until(async () => await wrong(written), { seconds: Math.max(90, within), worker: self.worker })
      const seconds = (performance.now() - healed) / 1000
      t.diagnostic(`fault: ${what}; equal ${seconds.toFixed(1)} s after it was over`)
      assert.ok(seconds < within, `it took ${seconds.toFixed(1)} s to recover from ${what}`)
      return seconds
    },
    async end() {
      const end = await self.worker.stop()
      assert.equal(end.code, 0, end.stderr)
    },
    [Symbol.asyncDispose]: async () => await pipeline[Symbol.asyncDispose](),
  }
  const wrong = async (written?: Awaited<ReturnType<Writers['stop']>>): Promise<readonly string[]> =>
    await compareShops(pipeline.source, pipeline.target, written).catch((error: unknown) => [String(error)])
  await self.equal()
  await until(async () => (/ streaming /.test(self.worker.output()) ? [] : ['not streaming yet']), {
    seconds: 60,
    worker: self.worker,
  })
  return self
}

/** Until so many more were acknowledged. */
export async function commits(writers: Writers, more: number): Promise<void> {
  const wanted = writers.acknowledged() + more
  const deadline = performance.now() + 60_000
  while (writers.acknowledged() < wanted) {
    if (performance.now() > deadline) throw new Error('the writers wrote nothing')
    await sleep(20)
  }
}

/** The address through a proxy. */
export function through(url: string, { port }: Pick<Proxy, 'port'>): string {
  const address = new URL(url)
  address.port = String(port)
  return address.href
}
