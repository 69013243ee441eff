import assert from 'node:assert/strict'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { logConfig } from '../support/kills.ts'
import { sql } from '../support/postgres.ts'
import { scene, type Scene } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { peakMemory, until, type Worker } from '../support/worker.ts'

const size = 50 * 2 ** 20
/** What a worker may need for rows of this size: about fifteen times the row, measured, and itself. */
const memoryBound = 1200 * 2 ** 20

for (const log of ['kafka', 'embedded'] as const) {
  describe(`rows of 50 MB through the ${log} log`, needs('pg', 'kafka'), () => {
    it('are copied and streamed; one above log.maxMessageBytes stops, and passes once that is raised', async (t) => {
      const pg = await postgres(18)
      const [source, target] = [await pg.database('large_source'), await pg.database('large_target')]
      await createDocuments(source)
      const config = async (limit: string): Promise<string> =>
        (await logConfig(log, 2)).replace(/ \}$/, `, maxMessageBytes: ${limit} }`)
      await using pipeline = await scene({ source, target, mode: 'hybrid', log: await config('8MiB') })
      let worker = pipeline.run()
      await untilSame(pipeline, worker)
      t.diagnostic(`copied: peak RSS ${megabytes(await peakMemory(worker.pid))} MB`)
      // Neither needs more than its key and what changed.
      await sql(source, `update document set note = 'second' where id in (1, 2)`)
      await sql(source, `update document set id = id + 100 where id = 2`)
      await untilSame(pipeline, worker)

      await sql(source, `insert into document select 3, 'first', body, null from original`)
      const end = await worker.ended
      assert.equal(end.code, 1, end.stdout + end.stderr)
      assert.match(end.stderr, /✗ RECORD_TOO_LARGE /)
      assert.match(end.stderr, /object +topic \S+\.public\.document/)
      assert.match(end.stderr, /next +Set log\.maxMessageBytes to (32|64)MiB and start again/)
      await sql(source, `insert into document select 4, 'first', null, blob from original`)

      const file = join(pipeline.work.dir, 'crossfade.yaml')
      await writeFile(file, (await readFile(file, 'utf8')).replace('maxMessageBytes: 8MiB', 'maxMessageBytes: 64MiB'))
      worker = pipeline.run()
      await untilSame(pipeline, worker)
      await sql(source, `update document set body = reverse(body) where id in (1, 3)`)
      await sql(source, `update document set blob = substr(blob, 2), note = 'third' where id = 4`)
      await sql(source, `update document set id = 102, blob = substr(blob, 3) where id = 102`)
      await untilSame(pipeline, worker)
      // Whole old rows are logged of these: a record holds the row twice, and one without a key is found by all it holds.
      await sql(source, `insert into whole select substr(body, 1, ${size / 4}), 'first' from original`)
      await sql(source, `update whole set note = 'second'`)
      await untilSame(pipeline, worker)
      await sql(source, `delete from whole; delete from document where id in (3, 4)`)
      await untilSame(pipeline, worker)
      // All in one transaction: it is spooled.
      await sql(source, `insert into document select n, 'spooled', body, null from original, generate_series(5, 7) n`)
      await untilSame(pipeline, worker)
      const peak = await peakMemory(worker.pid)
      t.diagnostic(`streamed: peak RSS ${megabytes(peak)} MB`)
      assert.ok(peak < memoryBound, `${megabytes(peak)} MB`)
      assert.equal((await worker.stop()).code, 0)
    })
  })
}

/** Values that neither end can compress away. */
async function createDocuments(source: string): Promise<void> {
  await sql(source, 'create table document (id int primary key, note text, body text, blob bytea)')
  await sql(source, 'alter table document alter body set storage external, alter blob set storage external')
  await sql(source, 'create table whole (body text, note text); alter table whole replica identity full')
  await sql(source, `create schema elsewhere; create table elsewhere.original (body text, blob bytea)`)
  await sql(
    source,
    `insert into elsewhere.original select body, decode(md5('1') || substr(body, 1, ${size - 32}), 'hex') || decode(reverse(body), 'hex')
     from (select string_agg(md5(i::text), '' order by i) as body from generate_series(1, ${size / 32}) i) b`,
  )
  await sql(source, `create view original as select * from elsewhere.original`)
  await sql(source, `insert into document select 1, 'first', body, null from original`)
  await sql(source, `insert into document select 2, 'first', null, blob from original`)
}

async function untilSame({ source, target }: Scene, worker: Worker): Promise<void> {
  const contents = async (url: string): Promise<unknown> => [
    await sql(url, `select id, note, md5(body) as body, md5(blob) as blob from document order by id`),
    await sql(url, `select note, md5(body) as body from whole order by 1, 2`),
  ]
  const wanted = JSON.stringify(await contents(source))
  const wrong = async (): Promise<readonly string[]> => {
    const found = await contents(target).then(JSON.stringify, String)
    return found === wanted ? [] : [`wanted ${wanted}`, `found ${found}`]
  }
  await until(wrong, { seconds: 120, worker })
}

function megabytes(bytes: number): number {
  return Math.round(bytes / 2 ** 20)
}
