import assert from 'node:assert/strict'
import { existsSync, readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { test } from 'node:test'
import { reference } from '../support/hazards.ts'

const root = resolve(import.meta.dirname, '../..')
const read = (path: string): string => readFileSync(resolve(root, path), 'utf8')

for (const page of ['docs/guarantees.md', 'src/snapshot/SPEC.md']) {
  test(`each test that ${page} names is there`, () => {
    const text = read(page).replaceAll(/(?<=^|[\s(])copy: (?=")/gm, '`test/src/snapshot/copy.test.ts`: ')
    const missing: string[] = []
    let count = 0
    for (const [, path = '', names = ''] of text.matchAll(reference)) {
      if (!existsSync(resolve(root, path))) {
        missing.push(path)
        continue
      }
      const tests = read(path)
      for (const [, name = ''] of names.matchAll(/"([^"]+)"/g)) {
        count++
        // In the file a name stands in quotes, whole, or as a template's literal part.
        if (!tests.includes(name.split('…')[0] ?? name)) missing.push(`${path}: ${name}`)
      }
    }
    assert.deepEqual(missing, [])
    assert.ok(count > 20, `only ${count} tests are named`)
  })
}
