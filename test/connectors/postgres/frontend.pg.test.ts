import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import pg from 'pg'
import {
  appendParse,
  appendSync,
  appendTextBind,
  copyIn,
  roundTrip,
  RoundTripError,
} from '../../../connectors/postgres/frontend.ts'
import { Output } from '../../../src/output.ts'
import { needs, postgres } from '../../support/servers.ts'
import { startProxy } from '../../support/proxy.ts'

describe('the extended protocol', needs('pg'), () => {
  async function connected(port?: number): Promise<pg.Client> {
    const url = new URL((await postgres(18)).adminUrl)
    if (port !== undefined) url.port = String(port)
    const client = new pg.Client({ connectionString: url.href })
    client.on('error', () => {})
    await client.connect()
    return client
  }

  it('runs all statements between two Syncs in one transaction', async () => {
    const client = await connected()
    await client.query('create temporary table t (v text)')
    const out = new Output(16)
    appendParse(out, 'i', 'insert into t values ($1)', [25])
    appendParse(out, 'd', 'select 1 / $1::int', [25])
    appendTextBind(out, 'i', ['é'])
    appendTextBind(out, 'i', [null])
    appendSync(out)
    assert.equal(await roundTrip(client, out), 2)
    appendTextBind(out, 'i', ['x'])
    appendTextBind(out, 'd', ['0'])
    appendTextBind(out, 'i', ['y'])
    appendSync(out)
    await assert.rejects(roundTrip(client, out), (error) => error instanceof RoundTripError && error.completed === 1)
    const { rows } = await client.query('select v from t')
    assert.deepEqual(rows, [{ v: 'é' }, { v: null }])
    await client.end()
  })

  it('settles an early error only when every byte is out of our hands', async () => {
    const proxy = await startProxy(Number(new URL((await postgres(18)).adminUrl).port))
    const client = await connected(proxy.port)
    await client.query('create temporary table t (v text)')
    const out = new Output(16)
    appendParse(out, 'f', 'select 1 / $1::int', [25])
    appendParse(out, 'i', 'insert into t values ($1)', [25])
    appendSync(out)
    await roundTrip(client, out)
    for (let round = 0; round < 5; round++) {
      appendTextBind(out, 'f', ['0'])
      for (let i = 0; i < 300; i++) appendTextBind(out, 'i', ['v'.repeat(100_000)])
      appendSync(out)
      await assert.rejects(roundTrip(client, out), /division by zero/)
      out.bytes.fill(0xee)
      appendTextBind(out, 'i', [String(round)])
      appendSync(out)
      assert.equal(await roundTrip(client, out), 1)
    }
    const { rows } = await client.query('select string_agg(v, $1) as v from t', [','])
    assert.deepEqual(rows, [{ v: '0,1,2,3,4' }])
    await client.end()
    await proxy.close()
  })

  it('rejects when the connection is lost while it waits', async () => {
    const proxy = await startProxy(Number(new URL((await postgres(18)).adminUrl).port))
    const client = await connected(proxy.port)
    const out = new Output(16)
    appendParse(out, 's', 'select pg_sleep(30)', [])
    appendTextBind(out, 's', [])
    appendSync(out)
    const work = roundTrip(client, out)
    work.catch(() => {})
    proxy.cut()
    await assert.rejects(work, RoundTripError)
    await assert.rejects(roundTrip(client, out), RoundTripError)
    await proxy.close()
  })

  it('copies frames cut anywhere, and breaks off when the server refuses a row', async () => {
    const client = await connected()
    await client.query('create temporary table t (v int)')
    const frame = (text: string): Buffer => {
      const bytes = Buffer.alloc(5 + text.length)
      bytes[0] = 0x64
      bytes.writeInt32BE(4 + text.length, 1)
      bytes.write(text, 5)
      return bytes
    }
    async function* cut(bytes: Buffer, size: number): AsyncIterable<Uint8Array> {
      for (let i = 0; i < bytes.length; i += size) yield bytes.subarray(i, i + size)
    }
    const all = Buffer.concat(Array.from({ length: 50 }, (_, i) => frame(`${i}\n`)))
    assert.equal(await copyIn(client, 'copy t from stdin', cut(all, 3)), 50)
    await assert.rejects(copyIn(client, 'copy nowhere from stdin', cut(all, 3)), /nowhere/)
    const other = await connected()
    await other.query('create temporary table t (v int)')
    const endless = async function* (): AsyncIterable<Uint8Array> {
      for (;;) yield frame('x\n')
    }
    await assert.rejects(copyIn(other, 'copy t from stdin', endless()), /invalid input/)
    await assert.rejects(other.query('select 1'))
    await client.end()
  })
})
