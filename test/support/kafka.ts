import { execFile, spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { chmodSync, chownSync } from 'node:fs'
import { copyFile, mkdir, readdir, rm, writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { cached, isCached, newRunDir } from './cache.ts'
import { account, freePort, launch, logTail, removeAtExit, until, type ServerProcess } from './processes.ts'

const run = promisify(execFile)
export const kafkaRelease = '4.4.0'
const librariesName = `kafka-${kafkaRelease}`
/** Where formatting puts the records that a new cluster starts from: its feature levels. */
const metadataLog = '__cluster_metadata-0'
const firstSnapshot = '00000000000000000000-0000000000.checkpoint'

interface KafkaOptions {
  /** Each node is broker and controller. Default 1. */
  readonly nodes?: 1 | 3
  /** Over the defaults below, for every node; keys as in server.properties. */
  readonly settings?: Readonly<Record<string, string | number>>
  /** Where a node says that it can be reached on 127.0.0.1, from the port it listens on: a proxy's. */
  readonly advertise?: (port: number) => Promise<number>
  /** Users that the cluster knows from its first start on, for SCRAM-SHA-512. */
  readonly users?: Readonly<Record<string, string>>
}

/** A cluster of its own, for tests that stop brokers; others share `kafka()` of servers.ts. Node numbers start at 1. */
export interface KafkaCluster extends AsyncDisposable {
  /** `127.0.0.1:port` of each node, in node order. */
  readonly brokers: readonly string[]
  readonly logDir: string
  /** Of the nodes running now, in node order; 0 for one that is stopped. */
  readonly pids: readonly number[]
  /** Ends one node, or all, in order; resolves when gone, after SIGKILL if 20 s were not enough. */
  stop(node?: number): Promise<void>
  /** SIGKILL to one node, or all. */
  kill9(node?: number): Promise<void>
  /** SIGSTOP: connections stay open, nothing answers. `resume` undoes it. */
  pause(node: number): void
  resume(node: number): void
  /** Stops one node, or all, if running, and starts it again on its port and data; resolves when it takes connections. */
  restart(node?: number): Promise<void>
  /** The log of a node's process. */
  logFile(node?: number): string
  /** Ends all nodes and removes the data. */
  [Symbol.asyncDispose](): Promise<void>
}

interface Node {
  readonly id: number
  readonly dir: string
  port: number
  advertised: number
  controllerPort: number
  process: ServerProcess | undefined
}

let reason: { value: string | undefined } | undefined

/** The reason why Kafka cannot be started here, or undefined. Starts nothing but `java -version`, once. */
export function kafkaMissing(): string | undefined {
  reason ??= { value: findReason() }
  return reason.value
}

function findReason(): string | undefined {
  const java = spawnSync('java', ['-version'], { encoding: 'utf8' })
  const major = /version "(\d+)/.exec(java.stderr ?? '')?.[1]
  if (major === undefined || Number(major) < 17) return 'Java 17 missing: apt-get install openjdk-17-jre-headless'
  if (isCached(librariesName) || spawnSync('mvn', ['-v']).status === 0) return undefined
  return 'Maven missing, which fetches Kafka: apt-get install maven'
}

/** Starts a cluster; resolves when every node takes connections. Ends with our process at the latest. */
export async function startKafka(options: KafkaOptions = {}, signal?: AbortSignal): Promise<KafkaCluster> {
  const count = options.nodes ?? 1
  const jars = await libraries()
  const format = await formatTemplate(jars, options.users ?? {})
  const clusterId = randomBytes(16).toString('base64url')
  const dir = await newRunDir('kafka')
  removeAtExit(dir)
  chownToAccount(dir)
  const nodes: Node[] = []
  for (let id = 1; id <= count; id++) {
    nodes.push({ id, dir: join(dir, String(id)), port: 0, advertised: 0, controllerPort: 0, process: undefined })
  }

  async function prepare(node: Node): Promise<void> {
    await rm(node.dir, { recursive: true, force: true })
    const data = join(node.dir, 'data')
    await mkdir(join(node.dir, 'tmp'), { recursive: true })
    const log = join(data, metadataLog)
    await mkdir(log, { recursive: true })
    await copyFile(join(format, firstSnapshot), join(log, firstSnapshot))
    const directoryId = randomBytes(16).toString('base64url')
    const meta = `version=1\ncluster.id=${clusterId}\nnode.id=${node.id}\ndirectory.id=${directoryId}\n`
    await writeFile(join(data, 'meta.properties'), meta)
    for (const path of [node.dir, data, join(node.dir, 'tmp'), log]) chownToAccount(path)
    for (const path of [join(log, firstSnapshot), join(data, 'meta.properties')]) chownToAccount(path)
    await writeFile(join(node.dir, 'server.properties'), properties(node, nodes, options.settings))
  }

  async function spawn(node: Node): Promise<void> {
    const heap = [
      '-Xms64m',
      '-Xmx320m',
      '-XX:+UseSerialGC',
      '-XX:TieredStopAtLevel=1',
      '-XX:-UsePerfData',
      '-Xshare:auto',
    ]
    node.process = await launch({
      command: 'java',
      args: [
        ...heap,
        `-Djava.io.tmpdir=${join(node.dir, 'tmp')}`,
        `-Dlog4j2.configurationFile=${join(format, 'log4j2.yaml')}`,
        '-cp',
        `${jars}/*`,
        'kafka.Kafka',
        join(node.dir, 'server.properties'),
      ],
      cwd: node.dir,
      env: { PATH: process.env['PATH'], JAVA_HOME: process.env['JAVA_HOME'], LC_ALL: 'C' },
      logFile: join(node.dir, 'server.log'),
    })
  }

  async function ready(node: Node): Promise<void> {
    const up = async (): Promise<boolean> => {
      signal?.throwIfAborted()
      if (!node.process?.alive()) throw new Error(`Kafka ended with ${node.process?.outcome()}:\n${tail(node)}`)
      return accepts(node.port)
    }
    if (!(await until(up, 60_000))) throw new Error(`Kafka was not ready within 60 s:\n${tail(node)}`)
  }

  const tail = (node: Node): string => logTail(join(node.dir, 'server.log'))

  async function startAll(): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      for (const node of nodes) {
        node.port = await freePort()
        node.controllerPort = await freePort()
        node.advertised = (await options.advertise?.(node.port)) ?? node.port
      }
      try {
        await Promise.all(nodes.map(prepare))
        await Promise.all(nodes.map(spawn))
        await Promise.all(nodes.map(ready))
        return
      } catch (error) {
        await cluster.kill9()
        if (attempt === 5 || !/BindException|Address already in use/.test(String(error))) throw error
      }
    }
  }

  const chosen = (id: number | undefined): Node[] => (id === undefined ? nodes : nodes.filter((node) => node.id === id))

  const cluster: KafkaCluster = {
    get brokers() {
      return nodes.map((node) => `127.0.0.1:${node.port}`)
    },
    logDir: dir,
    get pids() {
      return nodes.map((node) => (node.process?.alive() ? node.process.pid : 0))
    },
    logFile: (id = 1) => join(dir, String(id), 'server.log'),
    async stop(id) {
      for (const { process } of chosen(id)) {
        if (!process?.alive()) continue
        process.signal('SIGCONT')
        process.signal('SIGTERM')
        // The last node of a quorum waits for the others to take its partitions over: minutes, in vain.
        if (await process.gone(id === undefined && nodes.length > 1 ? 5_000 : 20_000)) continue
        process.signal('SIGKILL')
        await process.gone(10_000)
      }
    },
    async kill9(id) {
      for (const node of chosen(id)) node.process?.signal('SIGKILL')
      for (const node of chosen(id)) await node.process?.gone(10_000)
    },
    pause(id) {
      for (const node of chosen(id)) node.process?.signal('SIGSTOP')
    },
    resume(id) {
      for (const node of chosen(id)) node.process?.signal('SIGCONT')
    },
    async restart(id) {
      await cluster.stop(id)
      await Promise.all(chosen(id).map(spawn))
      await Promise.all(chosen(id).map(ready))
    },
    async [Symbol.asyncDispose]() {
      await cluster.kill9()
      await rm(dir, { recursive: true, force: true, maxRetries: 5 })
    },
  }
  await startAll()
  return cluster
}

function properties(node: Node, nodes: readonly Node[], settings: KafkaOptions['settings'] = {}): string {
  const replication = nodes.length
  const all: Record<string, string | number> = {
    'process.roles': 'broker,controller',
    'node.id': node.id,
    listeners: `PLAINTEXT://127.0.0.1:${node.port},CONTROLLER://127.0.0.1:${node.controllerPort}`,
    'advertised.listeners': `PLAINTEXT://127.0.0.1:${node.advertised}`,
    'listener.security.protocol.map': 'PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT',
    'controller.listener.names': 'CONTROLLER',
    'inter.broker.listener.name': 'PLAINTEXT',
    'controller.quorum.voters': nodes.map((each) => `${each.id}@127.0.0.1:${each.controllerPort}`).join(','),
    'log.dirs': join(node.dir, 'data'),
    'auto.create.topics.enable': 'false',
    'default.replication.factor': replication,
    'min.insync.replicas': replication > 1 ? 2 : 1,
    'offsets.topic.replication.factor': replication,
    'offsets.topic.num.partitions': 4,
    'transaction.state.log.replication.factor': replication,
    'transaction.state.log.min.isr': replication > 1 ? 2 : 1,
    'transaction.state.log.num.partitions': 4,
    'share.coordinator.state.topic.replication.factor': replication,
    'share.coordinator.state.topic.min.isr': 1,
    'group.initial.rebalance.delay.ms': 0,
    'group.min.session.timeout.ms': 1000,
    // A killed node is replaced in seconds.
    'broker.session.timeout.ms': 2000,
    'broker.heartbeat.interval.ms': 500,
    'controller.quorum.election.timeout.ms': 1000,
    'controller.quorum.fetch.timeout.ms': 2000,
    'num.network.threads': 2,
    'num.io.threads': 4,
    'background.threads': 2,
    'log.cleaner.dedupe.buffer.size': 4_194_304,
    'log.retention.check.interval.ms': 1000,
    'log.segment.delete.delay.ms': 1000,
    ...settings,
  }
  return Object.entries(all)
    .map(([key, value]) => `${key}=${value}\n`)
    .join('')
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1')
    socket.once('connect', () => {
      socket.destroy()
      resolve(true)
    })
    socket.once('error', () => resolve(false))
  })
}

function chownToAccount(path: string): void {
  if (account.uid !== undefined && account.gid !== undefined) chownSync(path, account.uid, account.gid)
}

/** The directory of Kafka's jars, resolved by Maven on first use (43 MB). */
function libraries(): Promise<string> {
  return cached(librariesName, async (dir) => {
    const pom = `<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>crossfade</groupId><artifactId>kafka-for-tests</artifactId><version>1</version><packaging>pom</packaging>
<dependencies><dependency>
<groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>${kafkaRelease}</version>
</dependency><dependency>
<groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.25.5</version>
</dependency></dependencies></project>`
    await writeFile(join(dir, 'pom.xml'), pom)
    const args = ['-q', '-B', '-f', join(dir, 'pom.xml'), 'dependency:copy-dependencies', `-DoutputDirectory=${dir}`]
    await run('mvn', args, { maxBuffer: 1 << 26 }).catch((error: unknown) => {
      const stdout = error instanceof Error && 'stdout' in error ? String(error.stdout) : ''
      throw new Error(
        `Kafka ${kafkaRelease} missing: Maven could not resolve it (apt-get install maven; is a registry reachable?)\n${stdout}${error}`,
      )
    })
    for (const file of await readdir(dir)) chmodSync(join(dir, file), 0o644)
  })
}

/** What formatting writes that holds for any node: made once, because starting Java for it costs as much as a node. */
function formatTemplate(jars: string, users: Readonly<Record<string, string>>): Promise<string> {
  const scram = Object.entries(users).map(([name, password]) => `SCRAM-SHA-512=[name=${name},password=${password}]`)
  const digest = scram.length === 0 ? '' : `-${createHash('sha256').update(scram.join()).digest('hex').slice(0, 12)}`
  return cached(`kafka-${kafkaRelease}-format${digest}`, async (dir) => {
    const node: Node = { id: 1, dir, port: 9092, advertised: 9092, controllerPort: 9093, process: undefined }
    const config = join(dir, 'server.properties')
    await writeFile(config, properties(node, [node]))
    await writeFile(join(dir, 'log4j2.yaml'), logging)
    const id = randomBytes(16).toString('base64url')
    const command = ['kafka.tools.StorageTool', 'format', '-t', id, '-c', config]
    const more = scram.flatMap((user) => ['--add-scram', user])
    await run('java', ['-Xmx128m', '-cp', `${jars}/*`, ...command, ...more])
    await copyFile(join(dir, 'data', metadataLog, firstSnapshot), join(dir, firstSnapshot))
    for (const file of [firstSnapshot, 'log4j2.yaml']) chmodSync(join(dir, file), 0o644)
    await rm(join(dir, 'data'), { recursive: true })
  })
}

const logging = `Configuration:
  status: warn
  Appenders:
    Console:
      name: out
      PatternLayout: { pattern: "%d %p %c %m%n" }
  Loggers:
    Root:
      level: warn
      AppenderRef: [{ ref: out }]
    Logger:
      - { name: kafka.server, level: info }
`
