import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import {
  clientConfig,
  connect,
  endWhenSilent,
  parse,
  type PostgresConfig,
} from '../../../connectors/postgres/config.ts'
import { copyIn } from '../../../connectors/postgres/frontend.ts'
import { mapError } from '../../../connectors/postgres/errors.ts'
import { watchSilence } from '../../../connectors/postgres/silence.ts'
import { startProxy, type Proxy } from '../../support/proxy.ts'
import { needs, postgres } from '../../support/servers.ts'

const never = new AbortController().signal
const silenceMs = 250

describe('a session whose server does not answer', needs('pg'), () => {
  let proxy: Proxy
  let config: PostgresConfig
  before(async () => {
    const url = new URL(await (await postgres(18)).database('silence'))
    proxy = await startProxy(Number(url.port))
    url.port = String(proxy.port)
    config = parse({ url: url.href })
  })
  after(async () => await proxy?.close())

  async function watched(): Promise<pg.Client> {
    const client = new pg.Client(clientConfig(config, { name: 'silent' }))
    client.on('error', () => {})
    endWhenSilent(client, config, { silenceMs })
    await client.connect()
    return client
  }

  it('is left alone while the server works, waits for a lock, or waits for us', async () => {
    const [client, other] = [await watched(), await watched()]
    await client.query('create table public.t (id int)')
    await client.query('select pg_sleep(0.8)')
    await other.query('begin; lock public.t')
    const locked = client.query('select from public.t')
    await sleep(800)
    await other.query('commit')
    await locked
    async function* slow(): AsyncIterable<Uint8Array> {
      yield Buffer.from('d\0\0\0\x061\n', 'latin1')
      await sleep(900)
      yield Buffer.from('d\0\0\0\x062\n', 'latin1')
    }
    assert.equal(await copyIn(client, 'copy public.t from stdin', slow()), 2)
    await client.end()
    await other.end()
  })

  for (const [what, lose] of [
    ['questions are lost', (on: boolean) => proxy.dropRequests(on)],
    ['answers are lost', (on: boolean) => proxy.dropAnswers(on)],
    ['everything is swallowed, another connection too', (on: boolean) => proxy.swallow(on)],
  ] as const) {
    it(`is ended when ${what}, in bounded time`, async () => {
      const client = await watched()
      await client.query('select 1')
      const before = proxy.lost
      lose(true)
      const asked = client.query('select 1').catch((error: unknown) => mapError(error))
      while (proxy.lost === before) await sleep(5)
      if (!what.startsWith('everything')) lose(false)
      const began = performance.now()
      const failure = await asked
      lose(false)
      assert.ok(failure instanceof Error)
      assert.match(failure.message, /^SERVER_UNREACHABLE: .*no answer for/)
      // Far below what TCP itself would take.
      assert.ok(performance.now() - began < 20_000)
    })
  }

  it('is left alone while a full server cannot say what it does', async () => {
    const client = new pg.Client(clientConfig(config, { name: 'silent' }))
    client.on('error', () => {})
    const full = Object.assign(new Error('too many clients'), { code: '53300', severity: 'FATAL' })
    let asked = 0
    const works = async (): Promise<boolean> => {
      if (++asked < 3) throw full
      return false
    }
    watchSilence(client, { object: 'here', works, silenceMs })
    await client.connect()
    proxy.dropAnswers(true)
    await assert.rejects(client.query('select 1'), /no answer for/)
    proxy.dropAnswers(false)
    assert.equal(asked, 3)
  })

  it('is noticed by its server too, so that its locks are free again', async () => {
    const client = await connect(config, { name: 'keepalive' }, never)
    const { rows } = await client.query(
      `select name, setting::int from pg_settings where name like 'tcp\\_%' order by name collate "C"`,
    )
    assert.deepEqual(
      rows.map(({ setting }) => setting),
      [4, 10, 5, 30_000],
    )
    await client.end()
  })
})
