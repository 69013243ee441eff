import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { describe, it } from 'node:test'
import { generated } from './render.ts'

describe('generated files', () => {
  for (const [path, render] of Object.entries(generated)) {
    it(`${path} is what its definition says (node test/docs/render.ts writes it)`, () => {
      assert.equal(readFileSync(resolve(import.meta.dirname, '../..', path), 'utf8'), render())
    })
  }
})
