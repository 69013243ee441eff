import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { after, describe, it } from 'node:test'
import { runCli, type Host } from '../../../src/cli/commands.ts'
import { plain, renderFailure, renderFindings } from '../../../src/cli/report.ts'
import type { Finding } from '../../../src/connector.ts'
import { Failure } from '../../../src/errors.ts'
import { fakeHost, statusOf, nothingPlanned, nothingRepaired } from './host.ts'
import { emptyReport } from '../../../src/verify/report.ts'

const folder = mkdtempSync(join(tmpdir(), 'crossfade-cli-'))
after(() => rmSync(folder, { recursive: true }))
writeFileSync(
  join(folder, 'crossfade.yaml'),
  'name: shop\nsource: { type: store, url: "${env:SOURCE_URL}" }\ntarget: { type: store, url: "${env:TARGET_URL}" }\n',
)
const findings: readonly Finding[] = [
  { id: 'source.log', level: 'ok', observed: 'on', needed: 'on' },
  {
    id: 'source.slots',
    level: 'blocker',
    observed: '10 of 10 slots are used: debezium, old_subscription, standby_1 and 7 more',
    needed: 'one free',
    remedy: 'drop one;\nor raise the limit',
  },
  { id: 'target.rights', level: 'unknown', observed: 'could not be asked', needed: 'the right to create' },
]

async function cli(
  args: readonly string[],
  changes: Partial<Host> = {},
): Promise<{ code: number; out: string; err: string }> {
  const kept = fakeHost(folder, changes)
  const code = await runCli(args, kept.host)
  return { code, out: kept.out, err: kept.err }
}
const pipeline = (changes: Partial<Host['pipeline']>): Partial<Host> => ({
  pipeline: {
    check: async () => [],
    run: async () => 'complete',
    status: async () => statusOf({}),
    verify: async () => emptyReport(nothingPlanned),
    verifyUntilStopped: async () => undefined,
    repair: async () => nothingRepaired,
    ...changes,
  },
})

describe('the command line', () => {
  it('lists what there is, and nothing more', async () => {
    const { code, out } = await cli(['--help'])
    assert.equal(code, 0)
    assert.deepEqual(
      [...out.matchAll(/^ {2}(\w+) \[options\]/gm)].map(([, name]) => name),
      ['init', 'check', 'run', 'status', 'verify', 'repair'],
    )
    for (const line of out.split('\n')) assert.ok(line.length <= 80, line)
  })

  for (const args of [['chek'], ['check', '--jsn'], ['check', 'a', 'b'], []])
    it(`takes ${JSON.stringify(args)} for a mistake`, async () => assert.equal((await cli(args)).code, 2))

  it('offers what was probably meant', async () => {
    assert.match((await cli(['chek'])).err, /unknown command 'chek'; Did you mean check\?/)
  })

  it('prints errors as documents where JSON is asked for', async () => {
    const { code, out, err } = await cli(['check', 'none.yaml', '--json'])
    assert.deepEqual([code, err], [2, ''])
    const { v, error } = JSON.parse(out) as { v: number; error: Record<string, unknown> }
    assert.deepEqual(
      [v, error['code'], error['observed'], error['next']],
      [1, 'CONFIG_INVALID', 'there is no such file', 'Create it: crossfade init none.yaml'],
    )
  })
})

describe('init', () => {
  it('writes a configuration once', async () => {
    const first = await cli(['init', 'new.yaml'])
    assert.equal(first.code, 0)
    assert.match(first.out, /crossfade check new\.yaml/)
    const text = readFileSync(join(folder, 'new.yaml'), 'utf8')
    assert.ok(existsSync(join(folder, '.crossfade/schema.json')))
    const { code, err } = await cli(['init', 'new.yaml'])
    assert.equal(code, 2)
    assert.match(err, /the file exists, and is left as it is/)
    assert.equal(readFileSync(join(folder, 'new.yaml'), 'utf8'), text)
    assert.equal((await cli(['check', 'new.yaml'])).code, 0)
  })

  it('names the next steps as it was called', async () => {
    const { out } = await cli(['init', 'called.yaml'], { typed: 'npm run -s crossfade --' })
    assert.match(out, /^ {2}npm run -s crossfade -- check called\.yaml\n {2}npm run -s crossfade -- run called\.yaml$/m)
    const { err } = await cli(['init', 'called.yaml'], { typed: 'npm run -s crossfade --' })
    assert.match(err, /Name another one: npm run -s crossfade -- init called-2\.yaml/)
  })
})

describe('check', () => {
  it('shows the worst first, each with a remedy', async () => {
    const { code, out } = await cli(['check'], pipeline({ check: async () => findings }))
    assert.equal(code, 1)
    assert.equal(
      out,
      `✗ source.slots   10 of 10 slots are used: debezium, old_subscription, standby_1
                 and 7 more
                 needed: one free
    → drop one;
      or raise the limit
? target.rights  could not be asked
                 needed: the right to create
✓ source.log     on

1 ok, 0 warnings, 1 blocker, 1 unknown. Not ready: remove the blockers first.
`,
    )
  })

  for (const [levels, expected] of [
    [[], 0],
    [['ok', 'warning'], 0],
    [['ok', 'unknown'], 3],
    [['unknown', 'blocker'], 1],
  ] as const) {
    it(`ends with ${expected} for ${levels.join(' and ') || 'nothing'}`, async () => {
      const found = levels.map((level): Finding => ({ id: level, level, observed: '', needed: '' }))
      const { code, out } = await cli(['check', '--json'], pipeline({ check: async () => found }))
      assert.equal(code, expected)
      assert.equal((JSON.parse(out) as { ready: boolean }).ready, expected === 0)
    })
  }

  it('ends with 5 where a server was not reached or let nobody in, whatever else was found', async () => {
    const other: Finding = { id: 'a', level: 'blocker', observed: '', needed: '' }
    for (const code of ['SERVER_UNREACHABLE', 'NO_RIGHTS'] as const) {
      const { code: exit } = await cli(['check'], pipeline({ check: async () => [other, { ...other, code }] }))
      assert.equal(exit, 5)
    }
    const missing = await cli(['check'], pipeline({ check: async () => [{ ...other, code: 'DATABASE_MISSING' }] }))
    assert.equal(missing.code, 1)
  })

  it('does not say ready of what could not be checked', () => {
    const text = renderFindings([{ id: 'x', level: 'unknown', observed: '', needed: '' }], 80, plain)
    assert.match(text, /Not proved ready/)
  })
})

describe('run', () => {
  it('ends with 0 when it was stopped', async () => {
    const { code, out } = await cli(['run'], pipeline({ run: async () => 'stopped' }))
    assert.deepEqual([code, out], [0, '✓ shop stopped cleanly. crossfade run carries on from here.\n'])
  })

  it('shows no secret, whoever says it', async () => {
    const run: Host['pipeline']['run'] = async (_config, _connectors, log, { watch }) => {
      const facts = { object: 'store://ana:s3cret!@one', observed: 'password s3cret! was refused' }
      watch(statusOf({ error: { code: 'NO_RIGHTS', facts, retrying: true, at: 0 } }))
      log.info({}, 's3cret!')
      throw new Failure('NO_RIGHTS', facts)
    }
    for (const args of [['run'], ['run', '--json']]) {
      const { code, out, err } = await cli(args, pipeline({ run }))
      assert.equal(code, 5)
      assert.match(out + err, /\*\*\*/)
      assert.doesNotMatch(out + err, /s3cret/)
    }
  })

  it('ends with the error in its layout', async () => {
    const run = async (): Promise<never> => {
      throw new Failure('ROW_REJECTED', {
        object: 'public.orders',
        observed: 'a null in total',
        needed: 'a value',
        effect: 'Nothing after it is applied',
      })
    }
    const { code, err } = await cli(['run'], pipeline({ run }))
    assert.equal(code, 1)
    assert.equal(
      err,
      `✗ ROW_REJECTED  The target rejects a change
    object   public.orders
    observed a null in total
    needed   a value
    effect   Nothing after it is applied
    next     Correct the target (constraint, type, trigger) and run again
`,
    )
  })
})

describe('an error', () => {
  it('with several findings lists each', () => {
    const all = [
      { object: 'a.yaml:1:1', observed: 'unknown key', next: 'Did you mean b?' },
      { object: 'a.yaml:2:1', observed: 'missing' },
    ]
    assert.equal(
      renderFailure(new Failure('CONFIG_INVALID', { object: 'a.yaml', observed: '2 problems', all }), 80, plain),
      `✗ CONFIG_INVALID  The configuration is not valid
    object   a.yaml
    observed 2 problems

  a.yaml:1:1
    observed unknown key
    next     Did you mean b?

  a.yaml:2:1
    observed missing
`,
    )
  })

  it('does not let a name steer the terminal, nor break a command', () => {
    const next = `drop ${'x'.repeat(100)}`
    const text = renderFailure(new Failure('BUG', { object: 'a\u001b[2Jb\u202e', next }), 60, plain)
    assert.match(text, /a\\u001b\[2Jb\\u202e/)
    assert.ok(text.includes(next))
  })
})

describe('the program', () => {
  const main = resolve(import.meta.dirname, '../../../src/main.ts')
  const crossfade = (args: readonly string[], env: NodeJS.ProcessEnv = {}): ReturnType<typeof spawnSync> =>
    spawnSync(process.execPath, [main, ...args], { env: { ...process.env, ...env }, encoding: 'utf8', timeout: 30_000 })

  it('starts, and finds files from where it was called', () => {
    assert.match(String(crossfade(['--version']).stdout), /^\d+\.\d+\.\d+\n$/)
    const { status, stderr } = crossfade(['check', 'none.yaml'], { INIT_CWD: folder })
    assert.equal(status, 2)
    assert.match(String(stderr), /object {3}none\.yaml\n/)
    assert.ok(!String(stderr).includes('\u001b'), 'no colours in a pipe')
  })

  it('knows how it was called', () => {
    const called = (env: NodeJS.ProcessEnv): string => {
      const dir = mkdtempSync(join(folder, 'called-'))
      return String(crossfade(['init'], { INIT_CWD: dir, npm_lifecycle_event: '', npm_command: '', ...env }).stdout)
    }
    assert.match(called({ npm_lifecycle_event: 'crossfade' }), /^ {2}npm run -s crossfade -- check$/m)
    assert.match(called({ npm_lifecycle_event: 'test' }), /^ {2}node \S*src\/main\.ts check$/m)
  })
})
