import kafkajs, { type Kafka, type KafkaConfig } from 'kafkajs'
import { Failure } from '../errors.ts'

/** How to reach a cluster. `brokers`: host:port, any of them is enough to find the others. */
export type KafkaAddress = {
  readonly brokers: readonly string[]
  readonly clientId: string
  readonly ssl?: boolean | KafkaTls | undefined
  readonly sasl?: KafkaLogin | undefined
}
/** PEM texts. */
type KafkaTls = {
  readonly ca?: string | undefined
  readonly cert?: string | undefined
  readonly key?: string | undefined
  readonly servername?: string | undefined
}
type KafkaLogin = {
  readonly mechanism: 'plain' | 'scram-sha-256' | 'scram-sha-512'
  readonly username: string
  readonly password: string
}
/** A request of Kafka's protocol without its header; answered by bytes. */
export type KafkaRequest = {
  readonly name: string
  readonly key: number
  readonly version: number
  readonly body: Buffer
}
/** Connections to one broker: one for fetches, one for the rest. A broker answers each in order. */
export interface Wire {
  /** Rejects after `timeout` ms (at least `requestTimeout`), and when the connection breaks: then the outcome is unknown. */
  send(request: KafkaRequest, timeout: number): Promise<Buffer>
  /** Breaks the connections; requests under way reject. */
  destroy(): void
}

/** The shortest wait for an answer, and the longest for a connection, in ms. */
const requestTimeout = 10_000
const connectionTimeout = 3_000
/** The library keeps its second connection for this request. */
const fetchKey = 1

/** What of the library's inside is used. Nothing else in this project knows it; the version is pinned. */
type InnerConnection = {
  readonly socket?: { destroy(error: Error): void }
  readonly requestQueue: object
  isConnected(): boolean
}
type InnerBroker = {
  connect(): Promise<void>
  readonly connectionPool: {
    readonly pool: readonly InnerConnection[]
    getConnection(index: number): Promise<object>
    send(request: {
      readonly request: {
        readonly apiKey: number
        readonly apiVersion: number
        readonly apiName: string
        encode(): Promise<{ readonly buf: Buffer; readonly buffer: Buffer }>
      }
      readonly response: { decode(bytes: Buffer): Promise<Buffer>; parse(bytes: Buffer): Promise<Buffer> }
      readonly requestTimeout: number
      readonly logResponseError: false
    }): Promise<Buffer>
  }
}
type InnerCluster = {
  readonly rootLogger: object
  readonly connectionPoolBuilder: { build(at: { readonly host: string; readonly port: number }): Promise<object> }
  readonly brokerPool: {
    createBroker(options: { readonly connectionPool: object; readonly logger: object }): InnerBroker
  }
}
type InnerQueue = { pending: { length: number }; throttleCheckTimeoutId: unknown; throttledUntil: number }

export function kafkaOf(address: KafkaAddress): Kafka {
  return new kafkajs.Kafka({
    brokers: [...address.brokers],
    clientId: address.clientId,
    ...(address.ssl === undefined ? {} : { ssl: address.ssl }),
    ...(address.sasl === undefined ? {} : { sasl: loginOf(address.sasl) }),
    connectionTimeout,
    requestTimeout,
    logLevel: kafkajs.logLevel.NOTHING,
    retry: { retries: 2, initialRetryTime: 100, maxRetryTime: 1_000 },
  })
}

function loginOf({ mechanism, username, password }: KafkaLogin): NonNullable<KafkaConfig['sasl']> {
  switch (mechanism) {
    case 'plain':
      return { mechanism, username, password }
    case 'scram-sha-256':
      return { mechanism, username, password }
    case 'scram-sha-512':
      return { mechanism, username, password }
    default:
      return mechanism satisfies never
  }
}

/** Opens connections through the library, which does TLS, authentication and framing. UNSUPPORTED if its inside is not the one known. */
export function dialer(address: KafkaAddress): (host: string, port: number) => Promise<Wire> {
  const cluster = clusterOf(kafkaOf(address))
  return async (host, port) => {
    const connectionPool = await cluster.connectionPoolBuilder.build({ host, port })
    const broker = cluster.brokerPool.createBroker({ connectionPool, logger: cluster.rootLogger })
    if (!isBroker(broker)) throw unknownInside('broker')
    for (const connection of broker.connectionPool.pool) calm(connection.requestQueue)
    const wire = wireOf(broker)
    try {
      await within(broker.connect(), connectionTimeout + requestTimeout)
    } catch (error) {
      wire.destroy()
      throw connectionFailure(error, `${host}:${port}`)
    }
    return wire
  }
}

function wireOf(broker: InnerBroker): Wire {
  const asIs = async (bytes: Buffer): Promise<Buffer> => bytes
  const { connectionPool } = broker
  const connecting: (Promise<object> | undefined)[] = []
  // The library opens a second socket if two requests find a connection closed.
  const connected = async (index: number): Promise<void> => {
    if (connectionPool.pool[index]?.isConnected()) return
    const opening = (connecting[index] ??= connectionPool.getConnection(index))
    try {
      await opening
    } finally {
      connecting[index] = undefined
    }
  }
  return {
    async send({ name, key, version, body }, timeout) {
      await connected(key === fetchKey ? 1 : 0)
      return await connectionPool.send({
        request: { apiKey: key, apiVersion: version, apiName: name, encode: async () => ({ buf: body, buffer: body }) },
        response: { decode: asIs, parse: asIs },
        requestTimeout: timeout,
        logResponseError: false,
      })
    },
    destroy() {
      for (const { socket } of broker.connectionPool.pool) socket?.destroy(new Error('connection given up'))
    },
  }
}

function connectionFailure(error: unknown, broker: string): Failure {
  const text = error instanceof Error ? error.message : String(error)
  const refused = error instanceof Error && error.name === 'KafkaJSSASLAuthenticationError'
  const unproved = notProved.test(text)
  return new Failure(refused || unproved ? 'NO_RIGHTS' : 'SERVER_UNREACHABLE', {
    object: `Kafka broker ${broker}`,
    observed: text,
    ...(unproved && {
      next: 'The TLS connection failed before any login was sent: set log.ssl.ca to the authority of the brokers’ certificates, and name the brokers as the certificates do',
    }),
    cause: error,
  })
}

/** What the TLS layer says when it cannot tell that the server is the right one, or that it speaks TLS at all. */
const notProved = /certificate|self.signed|altnames|SSL routines/i

async function within<T>(work: Promise<T>, ms: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${ms} ms`)), ms)
  })
  work.catch(() => {}) // reported by the race, unless it lost
  try {
    return await Promise.race([work, late])
  } finally {
    clearTimeout(timer)
  }
}

function clusterOf(kafka: Kafka): InnerCluster {
  const key = Object.getOwnPropertySymbols(kafka).find((each) => each.description === 'private:Kafka:createCluster')
  const create: unknown = key === undefined ? undefined : Reflect.get(kafka, key)
  if (!isFunction(create)) throw unknownInside('cluster')
  const cluster = create({ metadataMaxAge: 300_000, allowAutoTopicCreation: false })
  if (!isCluster(cluster)) throw unknownInside('cluster')
  return cluster
}

let patched: object | undefined

/** The library's queue re-arms a timer of 1 ms for ever, also with nothing to send; ours only when it has something to wait for. */
function calm(queue: object): void {
  const prototype: unknown = Object.getPrototypeOf(queue)
  if (prototype === patched) return
  if (!isObject(prototype)) throw unknownInside('queue')
  const name = 'scheduleCheckPendingRequests'
  const original: unknown = prototype[name]
  if (!isFunction(original) || !isQueue(queue)) throw unknownInside('queue')
  prototype[name] = function (this: InnerQueue): void {
    if (this.pending.length > 0 || this.throttledUntil > Date.now()) original.call(this)
  }
  patched = prototype
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null
}
function isFunction(value: unknown): value is (this: unknown, ...args: unknown[]) => unknown {
  return typeof value === 'function'
}
function isCluster(value: unknown): value is InnerCluster {
  if (!isObject(value) || !isObject(value['rootLogger'])) return false
  const { connectionPoolBuilder, brokerPool } = value
  if (!isObject(connectionPoolBuilder) || !isFunction(connectionPoolBuilder['build'])) return false
  return isObject(brokerPool) && isFunction(brokerPool['createBroker'])
}
function isBroker(value: unknown): value is InnerBroker {
  if (!isObject(value) || !isFunction(value['connect'])) return false
  const { connectionPool } = value
  if (!isObject(connectionPool) || !isFunction(connectionPool['send'])) return false
  const { pool } = connectionPool
  if (!isFunction(connectionPool['getConnection'])) return false
  return (
    Array.isArray(pool) &&
    pool.length > 0 &&
    pool.every((each) => isObject(each) && isObject(each['requestQueue']) && isFunction(each['isConnected']))
  )
}
function isQueue(value: object): value is InnerQueue {
  return 'pending' in value && Array.isArray(value.pending) && 'throttledUntil' in value
}
function unknownInside(part: string): Failure {
  return new Failure('UNSUPPORTED', {
    object: `kafkajs (${part})`,
    observed: 'its inside is not that of version 2.2.4',
    next: 'Install the versions of the lock file: npm ci',
  })
}
