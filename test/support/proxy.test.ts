import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net'
import { after, before, test } from 'node:test'
import { noLeaks } from './leaks.ts'
import { until } from './processes.ts'
import { startProxy } from './proxy.ts'

let echo: Server
let port = 0
before(async () => {
  echo = createServer((socket) => {
    socket.on('error', () => undefined)
    socket.pipe(socket)
  })
  echo.listen(0, '127.0.0.1')
  await once(echo, 'listening')
  port = (echo.address() as AddressInfo).port
})
after(() => void echo.close())
noLeaks()

/** A client that gathers what it hears. */
function dial(to: number): { socket: Socket; heard: () => string; ended: () => string } {
  const socket = connect(to, '127.0.0.1')
  let heard = ''
  let ended = ''
  socket.on('data', (data) => (heard += String(data)))
  socket.on('error', (error: NodeJS.ErrnoException) => (ended = error.code ?? 'error'))
  socket.on('close', () => (ended ||= 'closed'))
  return { socket, heard: () => heard, ended: () => ended }
}

test('bytes go through, and wait while it pauses', async () => {
  await using proxy = await startProxy(port)
  const client = dial(proxy.port)
  client.socket.write('one')
  assert.ok(await until(() => client.heard() === 'one', 2_000))
  proxy.pause()
  client.socket.write('two')
  assert.equal(await until(() => client.heard() !== 'one', 150), false)
  proxy.resume()
  assert.ok(await until(() => client.heard() === 'onetwo', 2_000))
  client.socket.end()
  assert.ok(await until(() => client.ended() === 'closed' && proxy.connections === 0, 2_000))
})

test('cut resets open connections, refuse resets new ones', async () => {
  await using proxy = await startProxy(port)
  const client = dial(proxy.port)
  client.socket.write('x')
  assert.ok(await until(() => client.heard() === 'x', 2_000))
  proxy.cut()
  assert.ok(await until(() => client.ended() === 'ECONNRESET', 2_000))
  proxy.refuse(true)
  const second = dial(proxy.port)
  assert.ok(await until(() => second.ended() === 'ECONNRESET', 2_000))
  proxy.refuse(false)
  const third = dial(proxy.port)
  third.socket.write('y')
  assert.ok(await until(() => third.heard() === 'y', 2_000))
})

test('delay holds data back; dropped answers never come', async () => {
  await using proxy = await startProxy(port)
  const client = dial(proxy.port)
  proxy.delay(100)
  const started = Date.now()
  client.socket.write('slow')
  assert.ok(await until(() => client.heard() === 'slow', 2_000))
  assert.ok(Date.now() - started >= 190)
  proxy.delay(0)
  proxy.dropAnswers(true)
  client.socket.write('lost')
  assert.equal(await until(() => client.heard() !== 'slow', 150), false)
})

test('a target that is not there looks like a reset', async () => {
  await using proxy = await startProxy(1)
  const client = dial(proxy.port)
  assert.ok(await until(() => client.ended() === 'ECONNRESET', 2_000))
})

test('what is swallowed never comes, and its connection stays deaf; a lost answer resets', async () => {
  await using proxy = await startProxy(port)
  const client = dial(proxy.port)
  client.socket.write('one')
  assert.ok(await until(() => client.heard() === 'one', 2_000))
  proxy.swallow(true)
  client.socket.write('two')
  await until(() => false, 50)
  proxy.swallow(false)
  client.socket.write('three')
  const second = dial(proxy.port)
  second.socket.write('four')
  assert.ok(await until(() => second.heard() === 'four', 2_000))
  assert.equal(client.heard(), 'one')
  assert.equal(client.ended(), '')
  proxy.loseAnswers(1)
  second.socket.write('five')
  assert.ok(await until(() => second.ended() === 'ECONNRESET', 2_000))
  assert.equal(second.heard(), 'four')
})

test('order is kept when a delay ends', async () => {
  await using proxy = await startProxy(port)
  const client = dial(proxy.port)
  proxy.delay(100)
  client.socket.write('slow')
  await until(() => false, 30)
  proxy.delay(0)
  client.socket.write('fast')
  assert.ok(await until(() => client.heard() === 'slowfast', 2_000))
})
