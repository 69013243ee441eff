import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { applyDdl, readDdl } from '../../../connectors/postgres/ddl.ts'
import { connect, parse, type PostgresConfig } from '../../../connectors/postgres/config.ts'
import { readCatalog, tableSchema } from '../../../connectors/postgres/schema.ts'
import { readShape } from '../../../connectors/postgres/shape-of.ts'
import type { ShapeEntry, TableSchema } from '../../../src/model.ts'
import { compareShapes, type ShapeDifference } from '../../../src/verify/shapes.ts'
import { needs, postgres } from '../../support/servers.ts'
import { loadFixture, loadOddTables, needsFixture } from '../../support/fixtures.ts'
import { equalCases, shapeCases, type ShapeCase } from '../../support/shape-cases.ts'

const signal = AbortSignal.timeout(180_000)
const settled = { streams: true, live: () => true }
/** Of each case a schema of its own. */
const schemaOf = (i: number): string => `case_${i}`

async function run(config: PostgresConfig, statements: readonly string[]): Promise<void> {
  const client = await connect(config, { name: 'test' }, signal)
  try {
    for (const statement of statements) await client.query(statement)
  } finally {
    await client.end()
  }
}

async function tablesOf(config: PostgresConfig): Promise<readonly TableSchema[]> {
  const client = await connect(config, { name: 'test' }, signal)
  try {
    return (await readCatalog(client, () => true)).map((table) => tableSchema(table, 1))
  } finally {
    await client.end()
  }
}

async function compare(
  source: PostgresConfig,
  target: PostgresConfig,
): Promise<{ readonly differences: readonly ShapeDifference[]; readonly entries: readonly ShapeEntry[] }> {
  const tables = await tablesOf(source)
  const entries = await readShape(source, 'test', tables, signal)
  const differences = compareShapes(entries, await readShape(target, 'test', tables, signal), settled)
  return { differences, entries }
}

/** The source's definitions, made at the target by the product. */
async function make(source: PostgresConfig, target: PostgresConfig, style: 'dump' | 'tables'): Promise<void> {
  const ddl = await readDdl(source, await tablesOf(source), style, signal)
  for (const phase of ['before', 'after'] as const) await applyDdl(target, ddl, phase, signal)
}

const caseOf = ({ table, name }: ShapeDifference): string => /case_\d+/.exec(`${table} ${name}`)?.[0] ?? ''
const plainName = (text: string): string => text.replaceAll('"', '').replaceAll(/case_\d+\./g, '')
const told = ({ severity, kind, table, name, what, part }: ShapeDifference): string => {
  const within = ['sequence', 'type', 'collation'].includes(kind) ? '' : plainName(table)
  const object = [within, plainName(name)].filter((text) => text !== '').join('.')
  return [severity, kind, object, what, part].filter((text) => text !== undefined).join(' ')
}

for (const [from, to] of [
  [18, 18],
  [15, 18],
  [18, 14],
] as const) {
  const known = ({ since = 14 }: ShapeCase): boolean => Math.min(from, to) >= since
  describe(`what tables are made of, ${from} and ${to}`, { ...needs('pg', 'pg15', 'pg14'), concurrency: 2 }, () => {
    test('each difference is named, with what it means for a cutover, and nothing else', async () => {
      const source = parse({ url: await (await postgres(from)).database('shape') })
      const target = parse({ url: await (await postgres(to)).database('shape') })
      const cases = shapeCases.filter(known)
      const script = (change: 'source' | 'target'): readonly string[] =>
        cases.flatMap((one, i) => [
          `create schema ${schemaOf(i)}; set search_path to ${schemaOf(i)}; ${one.make}`,
          one[change] ?? '',
        ])
      await Promise.all([run(source, script('source')), run(target, script('target'))])
      const { differences } = await compare(source, target)
      const found = Map.groupBy(differences, caseOf)
      assert.deepEqual(
        cases.map(({ name }, i) => [name, ...(found.get(schemaOf(i)) ?? []).map(told)]),
        cases.map(({ name, told }) => [name, ...told]),
      )
      const elsewhere = (found.get('') ?? []).filter(({ severity }) => severity !== 'note').map(told)
      // Servers bring libraries of their own.
      assert.deepEqual(
        elsewhere.filter((text) => !text.startsWith('warning collation ')),
        [],
      )
      assert.ok(cases.length > 60)
    })

    test('what is the same is not named, however it is made', async () => {
      const source = parse({ url: await (await postgres(from)).database('shape') })
      const target = parse({ url: await (await postgres(to)).database('shape') })
      const script = (end: 'source' | 'target'): readonly string[] =>
        equalCases.map((one, i) => `create schema ${schemaOf(i)}; set search_path to ${schemaOf(i)}; ${one[end]}`)
      await run(source, script('source'))
      await run(target, script('target'))
      const { differences, entries } = await compare(source, target)
      assert.deepEqual(differences.filter(({ severity }) => severity !== 'note').map(told), [])
      assert.ok(entries.length > 20)
    })
  })
}

describe('what the product makes is made of the same', { ...needs('pg', 'pg15', 'pg14'), concurrency: 2 }, () => {
  for (const [style, version] of [
    ['dump', 18],
    ['tables', 14],
  ] as const) {
    test(`pagila and odd tables by ${style}, from 15 to ${version}`, needsFixture('pagila'), async () => {
      const source = await (await postgres(15)).database('shape')
      await loadFixture(source, 'pagila')
      await loadOddTables(source)
      const target = parse({ url: await (await postgres(version)).database('shape') })
      await make(parse({ url: source }), target, style)
      const { differences, entries } = await compare(parse({ url: source }), target)
      // What needs functions of the database's own is left to people, who are told.
      const left = ({ kind, what }: ShapeDifference): boolean =>
        style === 'tables' && what === 'missing' && ['trigger', 'policy', 'rule'].includes(kind)
      const alarms = differences.filter((one) => one.severity !== 'note' && !left(one))
      assert.deepEqual(alarms.map(told), [])
      assert.equal(differences.some(left), style === 'tables')
      assert.ok(entries.length > 400, `${entries.length}`)
    })
  }
})
