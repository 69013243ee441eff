import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it } from 'node:test'
import { configTemplate, nameFrom } from '../../../src/cli/init.ts'
import { loadConfig, type LoadedConfig } from '../../../src/config/load-config.ts'
import { jsonSchema } from '../../../src/config/pipeline-config.ts'
import type { Connector } from '../../../src/connector.ts'
import { Failure, type Facts } from '../../../src/errors.ts'

const folder = mkdtempSync(join(tmpdir(), 'crossfade-config-'))
after(() => rmSync(folder, { recursive: true }))

const env = {
  SOURCE_URL: 'store://ana:p%40ss-word@one/shop',
  TARGET_URL: 'store://ana:s3cret!@two/shop',
  LANES: '6',
  WORD: 'many',
}
/** Knows `url` and, nested, `tls.ca`; refuses urls of other schemes. */
const connector: Connector = {
  name: 'store',
  parse: (raw) => {
    const cause: { path: string[]; message: string }[] = []
    const { url, ...others } = raw as Readonly<Record<string, unknown>>
    if (typeof url !== 'string' || !url.startsWith('store://'))
      cause.push({ path: ['url'], message: `needs the form store://…, not ${String(url)}` })
    for (const key of Object.keys(others)) if (key !== 'tls') cause.push({ path: [key], message: 'unknown key' })
    const { ca } = (others['tls'] ?? {}) as { readonly ca?: unknown }
    if (ca !== undefined) cause.push({ path: ['tls', 'ca'], message: 'cannot be read' })
    if (cause.length > 0) throw new Failure('CONFIG_INVALID', { observed: 'bad', cause })
    return raw
  },
  openSource: () => Promise.reject(new Error('not here')),
  openSink: () => Promise.reject(new Error('not here')),
}
const connectors = async (type: string): Promise<Connector> => {
  if (type === 'store') return connector
  throw new Failure('CONFIG_INVALID', { observed: `there is no connector ${type}`, needed: 'one of store' })
}
async function load(text: string): Promise<LoadedConfig> {
  const file = join(folder, 'pipeline.yaml')
  writeFileSync(file, text)
  return await loadConfig(file, env, { connectors, from: folder })
}
async function problems(text: string): Promise<readonly Facts[]> {
  const failure: unknown = await load(text).then(
    () => assert.fail('it was accepted'),
    (error: unknown) => error,
  )
  assert.ok(failure instanceof Failure)
  assert.equal(failure.code, 'CONFIG_INVALID')
  assert.doesNotMatch(JSON.stringify(failure.facts), /p%40ss|p@ss|s3cret/)
  return failure.facts.all ?? [failure.facts]
}

const base = `name: shop
source: { type: store, url: "\${env:SOURCE_URL}" }
target: { type: store, url: "\${env:TARGET_URL}" }
`

describe('a configuration', () => {
  it('is read as the documentation shows it', async () => {
    const { config, warnings } = await load(`name: shop                 # [a-z][a-z0-9_]{0,30}
mode: hybrid               # full | incremental | hybrid
# startAt: "<position>"     # incremental only
source: { type: store, url: "\${env:SOURCE_URL}" }
target: { type: store, url: "\${env:TARGET_URL}" }
tables: { include: ["public.*"], exclude: ["public.audit_*"] }   # globs over schema and table
ddl: apply                 # apply | stop
log: { type: kafka, brokers: ["127.0.0.1:9092"], partitions: 8, replication: 1 }
snapshot: { parallel: 4, chunkRows: 100000, schema: auto }                          # auto | dump | tables | none
apply: { lanes: 4, batchRows: 2000, batchBytes: 4MiB }
verify: { schedule: continuous, rate: 8000, maxLoad: 20 }                           # off | continuous
`)
    assert.deepEqual(warnings, [])
    assert.deepEqual(config, {
      name: 'shop',
      mode: 'hybrid',
      source: { type: 'store', url: env.SOURCE_URL },
      target: { type: 'store', url: env.TARGET_URL },
      tables: { include: ['public.*'], exclude: ['public.audit_*'] },
      ddl: 'apply',
      log: { type: 'kafka', brokers: ['127.0.0.1:9092'], partitions: 8, replication: 1, maxMessageBytes: 8 * 2 ** 20 },
      snapshot: { parallel: 4, chunkRows: 100_000, schema: 'auto' },
      apply: { lanes: 4, batchRows: 2000, batchBytes: 4 * 1024 ** 2 },
      verify: { schedule: 'continuous', rate: 8000, maxLoad: 20 },
      dir: join(folder, '.crossfade'),
    })
  })

  it('needs a name and two databases, and has defaults for the rest', async () => {
    const { config } = await load(base)
    assert.deepEqual(
      { ...config, source: undefined, target: undefined },
      {
        name: 'shop',
        mode: 'hybrid',
        source: undefined,
        target: undefined,
        tables: { include: ['*.*'], exclude: [] },
        ddl: 'stop',
        log: { type: 'embedded', dir: join(folder, '.crossfade/log'), partitions: 8, maxMessageBytes: 64 * 2 ** 20 },
        snapshot: { parallel: 4, chunkRows: 100_000, schema: 'auto' },
        apply: { lanes: 4, batchRows: 2000, batchBytes: 4 * 1024 ** 2 },
        verify: { schedule: 'off', rate: 5000 },
        dir: join(folder, '.crossfade'),
      },
    )
  })

  it('takes brokers for a broker', async () => {
    const { config } = await load(`${base}log: { brokers: ["k1:9092", "[::1]:9093"] }`)
    assert.deepEqual(config.log, {
      type: 'kafka',
      brokers: ['k1:9092', '[::1]:9093'],
      partitions: 8,
      replication: 3,
      maxMessageBytes: 8 * 2 ** 20,
    })
  })

  it('reads numbers and truth values out of references, and nothing else', async () => {
    const { config } = await load(
      `${base}apply: { lanes: "\${env:LANES}", batchBytes: "\${env:NONE:-8MiB}" }\nlog: { brokers: ["a:1"], ssl: "\${env:TLS:-true}", sasl: { mechanism: plain, username: "\${env:LANES}", password: "\${env:LANES}" } }`,
    )
    assert.equal(config.apply.lanes, 6)
    assert.equal(config.apply.batchBytes, 8 * 1024 ** 2)
    assert.ok(config.log.type === 'kafka')
    assert.equal(config.log.ssl, true)
    assert.deepEqual(config.log.sasl, { mechanism: 'plain', username: '6', password: '6' })
  })

  it('does not read what a reference stands for as YAML or as references', async () => {
    const hostile = 'store://x/"}\n, name: other, ${env:LANES} #'
    writeFileSync(join(folder, 'hostile'), `${hostile}\n`)
    const { config } = await load(base.replace('${env:SOURCE_URL}', '${file:hostile}'))
    assert.equal(config.source['url'], hostile)
    assert.equal(config.name, 'shop')
  })

  it('warns of a password in the file itself, without showing it', async () => {
    const { warnings, mask } = await load(base.replace('${env:SOURCE_URL}', 'store://a:hunter22@h/x'))
    assert.deepEqual(warnings, [
      {
        object: 'pipeline.yaml:2:29',
        observed: 'a secret of url stands in the file itself',
        next: 'Use ${env:NAME} or ${file:PATH}',
      },
    ])
    assert.equal(mask('no hunter22, and no s3cret! store://b:other@h'), 'no ***, and no *** store://b:***@h')
  })

  const bad: readonly (readonly [string, string, Partial<Facts>])[] = [
    ['an unknown key', 'tabels: {}', { object: 'pipeline.yaml:4:1  tabels', next: 'Did you mean tables?' }],
    ['one far from any', 'zzzzzz: 1', { observed: 'unknown key' }],
    ['one further in', 'apply: { lane: 4 }', { object: 'pipeline.yaml:4:10  apply.lane', next: 'Did you mean lanes?' }],
    ['one of the other log', 'log: { brokerz: [] }', { object: 'pipeline.yaml:4:8  log.brokerz' }],
    [
      'a wrong choice',
      'mode: hybird',
      {
        object: 'pipeline.yaml:4:7  mode',
        observed: '"hybird"',
        needed: 'one of full, incremental, hybrid',
        next: 'Did you mean hybrid?',
      },
    ],
    [
      'a wrong log',
      'log: { type: kafak }',
      { observed: '"kafak"', needed: 'one of kafka, embedded', next: 'Did you mean kafka?' },
    ],
    [
      'a number in quotes',
      'apply:\n  lanes: "4"',
      { object: 'pipeline.yaml:5:10  apply.lanes', next: 'Write the number without quotes' },
    ],
    ['a number out of range', 'apply: { lanes: 65 }', { observed: '65', needed: 'a whole number from 1 to 64' }],
    ['half a lane', 'apply: { lanes: 1.5 }', { observed: '1.5', needed: 'a whole number from 1 to 64' }],
    ['nothing after a colon', 'apply: { lanes: }', { observed: 'has no value' }],
    [
      'a size without a unit we know',
      'apply: { batchBytes: 4MB }',
      { observed: '"4MB"', needed: 'a size from 1KiB to 256MiB, such as 4MiB' },
    ],
    [
      'a size out of range',
      'apply: { batchBytes: 1GiB }',
      { observed: '"1GiB"', needed: 'a size from 1KiB to 256MiB, such as 4MiB' },
    ],
    ['a text for a mapping', 'apply: fast', { observed: '"fast"', needed: 'a mapping of keys to values' }],
    [
      'a text for a list',
      'tables: { include: public.* }',
      { object: 'pipeline.yaml:4:20  tables.include', needed: 'a list in [ ]' },
    ],
    [
      'a pattern without a schema',
      'tables: { include: [orders] }',
      { object: 'pipeline.yaml:4:21  tables.include[0]', needed: 'schema.table' },
    ],
    [
      'a broker without a port',
      'log: { brokers: [localhost] }',
      { object: 'pipeline.yaml:4:18  log.brokers[0]', needed: 'host:port' },
    ],
    ['a start for a copy', 'startAt: "0"', { object: 'pipeline.yaml:4:10  startAt' }],
    [
      'a start of another kind',
      'mode: incremental\nstartAt: 12345',
      { needed: 'a text such as "16/B374D848"', next: 'Write it in quotes' },
    ],
    ['an empty start', 'mode: incremental\nstartAt: ""', { needed: 'a text such as "16/B374D848"' }],
    ['a missing variable', 'startAt: "${env:NOWHERE}"', { observed: 'the environment variable NOWHERE is not set' }],
    ['a missing file', 'startAt: "${file:nowhere}"', { observed: 'the file nowhere cannot be read (ENOENT)' }],
    ['no reference', 'startAt: "${NAME}"', { observed: '${NAME} is no reference' }],
    ['a reference to no number', 'apply: { lanes: "${env:WORD}" }', { observed: 'the value of ${env:WORD}' }],
    ['a key twice', 'name: again', { object: 'pipeline.yaml:4:1', observed: 'the key name is there twice' }],
    ['a bare reference', 'apply: { lanes: ${env:LANES} }', { next: 'Put the reference in quotes: "${env:NAME}"' }],
    ['a tab', 'apply:\n\tlanes: 4', { object: 'pipeline.yaml:5:1' }],
    [
      'no connector',
      'state: { type: stor }',
      { object: 'pipeline.yaml:4:16  state.type', observed: 'there is no connector stor' },
    ],
    ['a connector that cannot', 'state: { type: store, url: "store://x" }', { observed: 'store cannot be a state' }],
  ]
  for (const [name, text, expected] of bad) {
    it(`is refused for ${name}`, async () => {
      const [only, ...others] = await problems(`${base}${text}\n`)
      assert.deepEqual(others, [])
      const shown = Object.fromEntries(Object.keys(expected).map((key) => [key, only?.[key as keyof Facts]]))
      assert.deepEqual(shown, expected)
    })
  }

  it('is refused with the places of a connector’s own keys', async () => {
    const found = await problems(`name: shop
source:
  type: store
  url: "\${env:TARGET_URL}"
  ulr: 1
  tls:
    ca: ca.pem
target: { type: store, url: "http://ana:s3cret!@h" }
`)
    assert.deepEqual(
      found.map(({ object, observed }) => [object, observed]),
      [
        ['pipeline.yaml:5:3  source.ulr', 'unknown key'],
        ['pipeline.yaml:7:9  source.tls.ca', 'cannot be read'],
        ['pipeline.yaml:8:29  target.url', 'needs the form store://…, not http://ana:***@h'],
      ],
    )
  })

  it('is refused for a connector’s key that was mistyped, and not once more for the one it stands for', async () => {
    const cause = [
      { path: ['url'], message: 'missing', needed: 'store://…' },
      { path: ['uri'], message: 'unknown key', known: ['url', 'tls'] },
    ]
    const refusing = (given: typeof cause): Connector => ({
      ...connector,
      parse: () => {
        throw new Failure('CONFIG_INVALID', { cause: given })
      },
    })
    const told = async (given: typeof cause): Promise<readonly (Facts | undefined)[]> => {
      const file = join(folder, 'pipeline.yaml')
      writeFileSync(file, `name: shop\nsource: { type: store, uri: 1 }\ntarget: { type: store, uri: 1 }\n`)
      const error: unknown = await loadConfig(file, env, { connectors: async () => refusing(given) }).catch(
        (e: unknown) => e,
      )
      assert.ok(error instanceof Failure)
      return error.facts.all ?? []
    }
    assert.deepEqual(
      (await told(cause)).map((one) => [one?.observed, one?.next]),
      Array.from({ length: 2 }, () => ['unknown key', 'Did you mean url?']),
    )
    assert.deepEqual(
      (await told(cause.slice(0, 1))).map((one) => [one?.observed, one?.needed, one?.next]),
      Array.from({ length: 2 }, () => ['missing', 'store://…', 'Add url: …']),
    )
  })

  it('is refused with everything that is wrong, in the order of the file', async () => {
    const found = await problems(`nam: x\nmode: slow\nsource: {}\napply: { lanes: "\${env:NO}", batchRows: 0 }\n`)
    assert.deepEqual(
      found.map(({ object }) => object),
      [
        'pipeline.yaml:1:1  name',
        'pipeline.yaml:1:1  target',
        'pipeline.yaml:1:1  nam',
        'pipeline.yaml:2:7  mode',
        'pipeline.yaml:3:9  source.type',
        'pipeline.yaml:4:17',
        'pipeline.yaml:4:41  apply.batchRows',
      ],
    )
  })

  it('is asked for where there is none', async () => {
    await assert.rejects(loadConfig(join(folder, 'none.yaml'), env, { from: folder }), (error) => {
      assert.ok(error instanceof Failure)
      assert.equal(error.facts.next, 'Create it: crossfade init none.yaml')
      return true
    })
  })

  for (const text of ['', '[]', 'shop', '{}', '--- {}\n--- {}']) {
    it(`is refused where it is ${JSON.stringify(text)}`, async () => {
      assert.ok((await problems(text)).length > 0)
    })
  }
})

describe('the template of init', () => {
  it('is a configuration, and says the defaults', async () => {
    const { config, warnings } = await load(configTemplate('shop', 'store', './schema.json'))
    assert.deepEqual(warnings, [])
    assert.deepEqual(config, (await load(base)).config)
  })

  it('speaks of every key', () => {
    const text = configTemplate('shop', 'store', './schema.json')
    for (const [key, schema] of Object.entries(jsonSchema().properties ?? {})) {
      assert.match(text, new RegExp(`^(# )?${key}:`, 'm'))
      for (const inner of Object.keys(schema.properties ?? {})) assert.match(text, new RegExp(`\\b${inner}:`))
    }
  })

  it('names the pipeline after its folder', () => {
    assert.equal(nameFrom('My Shop-2'), 'my_shop_2')
    assert.equal(nameFrom('2024'), 'pipeline')
    assert.match(nameFrom(`_${'x'.repeat(60)}`), /^[a-z][a-z0-9_]{0,30}$/)
  })
})
