import { randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import pg from 'pg'
import { parse } from '../../../connectors/postgres/config.ts'
import { openSource } from '../../../connectors/postgres/source.ts'
import { memoryStore } from '../../../src/coordinate/state-store.ts'
import { silent } from '../../../src/logger.ts'
import { sourceConformance, type BedChange, type SourceBed } from '../../conformance/source.ts'
import { needs, postgres } from '../../support/servers.ts'

for (const version of [18, 14] as const) {
  const { skip } = needs(version === 18 ? 'pg' : 'pg14')
  sourceConformance(`PostgreSQL ${version}`, () => makeBed(version), skip)
}

async function makeBed(version: 18 | 14): Promise<SourceBed> {
  const server = await postgres(version)
  const url = await server.database('source')
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  await client.query('create table kv (key int primary key, value text)')
  const state = memoryStore()
  const pipeline = `t${randomBytes(5).toString('hex')}`
  const dir = await mkdtemp(join(tmpdir(), 'crossfade-source-'))
  const never = new AbortController().signal
  const open = () => openSource(parse({ url }), { pipeline, dir, log: silent }, state, never)
  return {
    open,
    filter: (table) => table.name === 'kv',
    async commit(...changes) {
      await client.query(['begin', ...changes.map(statement), 'commit'].join(';'))
    },
    async [Symbol.asyncDispose]() {
      const source = await open()
      await source.release(never)
      await source[Symbol.asyncDispose]()
      await client.end()
      await rm(dir, { recursive: true })
    },
  }
}

function statement(change: BedChange): string {
  switch (change.kind) {
    case 'insert':
      return `insert into kv values (${change.key}, '${change.value}')`
    case 'update':
      return `update kv set key = ${change.newKey ?? change.key}, value = '${change.value}' where key = ${change.key}`
    case 'delete':
      return `delete from kv where key = ${change.key}`
    case 'truncate':
      return 'truncate kv'
    default:
      return change satisfies never
  }
}
