import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { kafka, needs, postgres } from '../support/servers.ts'
import { compareTables, connected } from '../support/shop.ts'
import { until, workplace } from '../support/worker.ts'

describe('one table, from end to end', needs('pg', 'kafka'), () => {
  it('copies, streams inserts, updates and deletes, and goes on after SIGKILL', async () => {
    const pg = await postgres(18)
    const [source, target] = [await pg.database('way_source'), await pg.database('way_target')]
    const { brokers, prefix } = await kafka()
    const name = `way_${prefix.replaceAll(/[^a-z0-9]/g, '')}`.slice(0, 30)
    await using writer = await connected(source)
    await writer.query('create table thing (id int primary key, name text, at timestamptz default now())')
    await writer.query(`insert into thing select i, 'thing ' || i from generate_series(1, 5000) i`)
    await using work = await workplace(
      `name: ${name}
source: { type: postgres, url: "${source}" }
target: { type: postgres, url: "${target}" }
log: { type: kafka, brokers: [${brokers.map((broker) => `"${broker}"`).join(', ')}], partitions: 4, replication: 1 }
`,
    )
    const equal = async (): Promise<readonly string[]> =>
      await compareTables(source, target, ['thing']).catch((error: unknown) => [String(error)])
    const first = work.run()
    await until(equal, { seconds: 40, worker: first })
    await writer.query(`insert into thing select i, 'later' from generate_series(5001, 7000) i`)
    await writer.query(`update thing set name = name || '!' where id % 3 = 0`)
    await writer.query('delete from thing where id % 5 = 0')
    await until(equal, { seconds: 20, worker: first })
    await writer.query(`update thing set id = id + 100000 where id % 7 = 0`)
    await first.kill9()
    await writer.query(`insert into thing select i, 'while nobody looked' from generate_series(20001, 21000) i`)
    const second = work.run()
    await until(equal, { seconds: 40, worker: second })
    const end = await second.stop()
    assert.equal(end.code, 0, end.stderr)
  })
})
