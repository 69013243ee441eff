import assert from 'node:assert/strict'
import { globSync, readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { test } from 'node:test'

const root = resolve(import.meta.dirname, '../..')
const files = (pattern: string): readonly { readonly path: string; readonly text: string }[] =>
  globSync(pattern, { cwd: root }).map((path) => ({ path, text: readFileSync(resolve(root, path), 'utf8') }))
const core = files('src/**/*.ts')
const connectors = files('connectors/**/*.ts')
const importsOf = (text: string): readonly string[] =>
  [...text.matchAll(/^(?:import|export)\b[^;]*?\bfrom '([^']+)'|\bimport\('([^']+)'\)/gm)].map(
    ([, from, lazy]) => from ?? lazy ?? '',
  )
const lines = (text: string): number => text.split('\n').length - 1

test('the core names no database', () => {
  assert.ok(core.length > 50)
  const names =
    /postgre|(?<![a-z])pg(?![a-z])|mongo|mysql|mariadb|oracle|sqlite|sqlserver|mssql|\bwal\b|pgoutput|oplog/i
  const found = core.flatMap(({ path, text }) =>
    text.split('\n').flatMap((line, i) => (names.test(line) ? [`${path}:${i + 1}: ${line.trim()}`] : [])),
  )
  assert.deepEqual(found, [])
})

test('only the composition root imports connectors', () => {
  for (const { path, text } of core) {
    const reached = importsOf(text).filter((from) => from.includes('connectors/'))
    assert.deepEqual(reached, path === 'src/main.ts' ? ['../connectors/index.ts'] : [], path)
  }
})

test('connectors import the seam and little else of the core', () => {
  const allowed =
    /src\/(connector|model|rows|output|errors|logger|failpoint|coordinate\/state-store|cutover\/gate)\.ts$/
  for (const { path, text } of connectors) {
    const reached = importsOf(text).filter((from) => from.includes('/src/') && !allowed.test(from))
    assert.deepEqual(reached, [], path)
  }
})

test('the seam is one file on about one screen', () => {
  const seam = core.find(({ path }) => path === 'src/connector.ts')
  assert.ok(seam && lines(seam.text) <= 200, `${seam && lines(seam.text)} lines`)
})

test('no file is longer than 500 lines', () => {
  for (const { path, text } of [...core, ...connectors]) assert.ok(lines(text) <= 500, `${path}: ${lines(text)} lines`)
})
