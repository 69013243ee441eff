import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from '../support/postgres.ts'
import { scene } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { connected } from '../support/shop.ts'
import { peakMemory, until } from '../support/worker.ts'

const count = 2000
const names = Array.from({ length: count }, (_, i) => `t${i}`)
/** Bytes that a worker of so many tables may take at most. */
const bound = 800 * 2 ** 20

describe('2,000 tables in one pipeline', needs('pg'), () => {
  it('are copied under writes, streamed, killed and gone on with, within a bound of memory', async (t) => {
    const pg = await postgres(18)
    const [source, target] = [await pg.database('tables_source'), await pg.database('tables_target')]
    await createTables(target, false)
    await createTables(source, true)
    await using pipeline = await scene({ source, target, mode: 'hybrid' })
    const check = performance.now()
    const checked = await pipeline.command(['check'])
    t.diagnostic(`check: ${since(check)} s`)
    assert.equal(checked.code, 0, checked.stdout + checked.stderr)
    await using writer = await writing(source)
    const began = performance.now()
    let worker = pipeline.run()
    const live = async (): Promise<number> => {
      const rows = await sql<{ n: number }>(target, 'select count(*)::int as n from crossfade.chunk where done').catch(
        () => [],
      )
      return rows[0]?.n ?? 0
    }
    await until(async () => ((await live()) > count / 2 ? [] : ['not half copied']), { seconds: 200, worker })
    t.diagnostic(`half of them copied after ${since(began)} s`)
    const first = await peakMemory(worker.pid)
    await worker.kill9()
    const again = performance.now()
    worker = pipeline.run()
    await until(
      async () => {
        const rows = await sql<{ n: number }>(target, 'select count(*)::int as n from crossfade.copy where live')
        return rows[0]?.n === count ? [] : [`${rows[0]?.n} live`]
      },
      { seconds: 200, worker },
    )
    t.diagnostic(`fault: worker killed; all are live ${since(again)} s after the next began`)
    const before = writer.written
    await until(async () => (writer.written > before + 200 ? [] : ['too little was streamed']), { seconds: 60, worker })
    await writer.stop()
    const stopped = performance.now()
    const expected = await sums(source)
    await until(async () => differences(expected, await sums(target)), { seconds: 60, worker })
    t.diagnostic(`equal ${since(stopped)} s after the last of ${writer.written} transactions`)
    const peak = Math.max(first, await peakMemory(worker.pid))
    t.diagnostic(`peak memory of a worker: ${Math.round(peak / 2 ** 20)} MB, bound ${Math.round(bound / 2 ** 20)} MB`)
    assert.ok(peak < bound, `${peak} bytes`)
    assert.equal((await worker.stop()).code, 0)
  })
})

async function createTables(url: string, filled: boolean): Promise<void> {
  for (let from = 0; from < count; from += 500) {
    const statements = names.slice(from, from + 500).map(
      (name) => `create table ${name} (id int primary key, name text, at timestamptz default now());
        ${filled ? `insert into ${name} select i, 'row ' || i from generate_series(1, 20) i` : ''}`,
    )
    await sql(url, statements.join(';'))
  }
}

/** Transactions over a few tables each, until it is stopped. */
async function writing(url: string): Promise<AsyncDisposable & { readonly written: number; stop(): Promise<void> }> {
  const client = await connected(url)
  let written = 0
  let going = true
  const loop = async (): Promise<void> => {
    for (let n = 0; going; n++) {
      const name = names[(n * 7) % count] ?? ''
      const other = names[(n * 13 + 5) % count] ?? ''
      await client.query(`begin; update ${name} set name = 'changed ' || ${n} where id = 1 + ${n} % 20;
        insert into ${other} values (${1000 + n}, 'new'); delete from ${name} where id = 2 + ${n} % 19; commit`)
      written++
      await sleep(20)
    }
  }
  const ended = loop()
  const stop = async (): Promise<void> => {
    going = false
    await ended
  }
  return {
    get written() {
      return written
    },
    stop,
    async [Symbol.asyncDispose]() {
      await stop()
      await client[Symbol.asyncDispose]()
    },
  }
}

/** Rows and a checksum of each table, by the server itself. */
async function sums(url: string): Promise<ReadonlyMap<string, string>> {
  const found = new Map<string, string>()
  for (let from = 0; from < count; from += 200) {
    const asked = names
      .slice(from, from + 200)
      .map(
        (name) =>
          `select '${name}' as name, count(*) || ' rows, sum ' || coalesce(sum(hashtextextended(t::text, 0)), 0) as sum from ${name} t`,
      )
    for (const { name, sum } of await sql<{ name: string; sum: string }>(url, asked.join(' union all ')))
      found.set(name, sum)
  }
  return found
}

function differences(expected: ReadonlyMap<string, string>, found: ReadonlyMap<string, string>): string[] {
  return [...expected]
    .filter(([name, sum]) => found.get(name) !== sum)
    .map(([name, sum]) => `${name}: ${sum} and ${found.get(name)}`)
}

function since(began: number): string {
  return ((performance.now() - began) / 1000).toFixed(1)
}
