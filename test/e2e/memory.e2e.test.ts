import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { logConfig, uniqueName } from '../support/kills.ts'
import { needs, postgres } from '../support/servers.ts'
import { compareTables, connected } from '../support/shop.ts'
import { peakMemory, until, workplace } from '../support/worker.ts'

const limit = 300 * 2 ** 20

describe('memory of a worker', needs('pg', 'kafka'), () => {
  it(
    'stays under 300 MB through a million rows copied and a million rows in one transaction',
    { timeout: 240_000 },
    async (t) => {
      const pg = await postgres(18)
      const [source, target] = [await pg.database('memory_source'), await pg.database('memory_target')]
      await using writer = await connected(source)
      await writer.query(
        'create table big (id bigint primary key, name text, amount numeric(12,2), at timestamptz, data jsonb)',
      )
      const insert = (from: number): string =>
        `insert into big select i, 'name ' || i, i / 7.0, now(), jsonb_build_object('n', i, 'text', md5(i::text))
       from generate_series(${from}, ${from + 999_999}) i`
      await writer.query(insert(1))
      await using work = await workplace(`name: ${uniqueName('memory')}
source: { type: postgres, url: "${source}" }
target: { type: postgres, url: "${target}" }
log: ${await logConfig('kafka')}
`)
      const worker = work.run()
      const equal = async (): Promise<readonly string[]> =>
        await compareTables(source, target, ['big']).catch((error: unknown) => [String(error)])
      const count = async (): Promise<number> => {
        await using reader = await connected(target)
        const { rows } = await reader
          .query<{ n: number }>('select count(*)::int as n from big')
          .catch(() => ({ rows: [] }))
        return rows[0]?.n ?? 0
      }
      await until(async () => ((await count()) === 1_000_000 ? [] : ['not copied']), { seconds: 90, worker })
      const copied = await peakMemory(worker.pid)
      await writer.query(insert(1_000_001))
      await until(async () => ((await count()) === 2_000_000 ? [] : ['not applied']), { seconds: 120, worker })
      await until(equal, { seconds: 60, worker })
      const streamed = await peakMemory(worker.pid)
      t.diagnostic(
        `peak RSS: ${Math.round(copied / 2 ** 20)} MB after the copy, ${Math.round(streamed / 2 ** 20)} MB after the transaction`,
      )
      assert.ok(streamed < limit, `${streamed} bytes`)
      assert.equal((await worker.stop()).code, 0)
    },
  )
})
