import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import { corrupt, corruptible, corruptibleTables, corruptions } from '../support/corruptions.ts'
import { sql, startPostgres, type PostgresServer } from '../support/postgres.ts'
import { scene, untilEqual } from '../support/scene.ts'
import { needs } from '../support/servers.ts'
import { told, verified } from '../support/verified.ts'
import { until } from '../support/worker.ts'

const seed = Number(process.env['CROSSFADE_SEED'] ?? Date.now() % 100_000)
const rows = 4_000

function seeded(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 4294967296
  }
}

const locales = {
  C: `locale 'C'`,
  icu: `locale_provider icu icu_locale 'en-US' locale 'C'`,
  builtin: `locale_provider builtin builtin_locale 'C.UTF-8' locale 'C'`,
} as const
type End = { readonly version: 15 | 18; readonly locale: keyof typeof locales }

describe('ends of two kinds', needs('pg', 'pg15'), () => {
  const servers = new Map<number, PostgresServer>()
  before(async () => {
    for (const version of [15, 18] as const) servers.set(version, await startPostgres({ version }))
  })
  after(async () => {
    for (const server of servers.values()) await server[Symbol.asyncDispose]()
  })
  let made = 0
  async function database({ version, locale }: End): Promise<string> {
    const server = servers.get(version) ?? assert.fail()
    const name = `end_${++made}`
    await sql(server.adminUrl, `create database ${name} template template0 encoding 'UTF8' ${locales[locale]}`)
    return server.url(name)
  }
  const pairs: readonly (readonly [from: End, to: End])[] = [
    [
      { version: 15, locale: 'C' },
      { version: 18, locale: 'icu' },
    ],
    [
      { version: 18, locale: 'builtin' },
      { version: 15, locale: 'icu' },
    ],
    [
      { version: 18, locale: 'icu' },
      { version: 18, locale: 'C' },
    ],
  ]
  for (const [from, to] of pairs) {
    it(`a verification from ${from.version} ${from.locale} to ${to.version} ${to.locale} finds the same`, async (t) => {
      t.diagnostic(`CROSSFADE_SEED=${seed}`)
      const [source, target] = [await database(from), await database(to)]
      await sql(source, corruptibleTables(rows))
      await sql(
        source,
        `insert into named values ('ÄPFEL', 1), ('Zebra', 2), ('äpfel', 3), ('a-b', 4), ('ab', 5), ('Ab', 6)`,
      )
      await using pipeline = await scene({ source, target, mode: 'hybrid' })
      const worker = pipeline.run()
      await untilEqual(pipeline, worker, 60, corruptible)
      await until(
        async () =>
          (await pipeline.command(['status', '--json'])).stdout.includes('"streaming"') ? [] : ['not streaming'],
        { seconds: 60, worker },
      )
      const equal = await verified(pipeline)
      assert.deepEqual([equal.code, equal.report.verdict], [0, 'equal'], JSON.stringify(equal.report))
      const expected = await corrupt(target, { rows, count: 3 * corruptions.length, random: seeded(seed) })
      assert.deepEqual(
        new Set((await verified(pipeline)).report.differences.map(({ table }) => table)),
        new Set(corruptible.map((name) => `public.${name}`)),
      )
      const all = await pipeline.command(['verify', 'report', '--json'])
      assert.deepEqual(told(JSON.parse(all.stdout)).toSorted(), expected)
      const repaired = await pipeline.command(['repair', '--json'])
      assert.equal(repaired.code, 0, repaired.stdout + repaired.stderr)
      await untilEqual(pipeline, worker, 20, corruptible)
      assert.equal((await worker.stop()).code, 0)
    })
  }
})
