import assert from 'node:assert/strict'
import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { sql } from '../support/postgres.ts'
import { assertCompletes, createThings, scene } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'

describe('a full copy that is complete', { ...needs('pg') }, () => {
  it('is verified, repaired, and verified again, with no process that runs it', async () => {
    const pg = await postgres(18)
    const [source, target] = [await pg.database('complete_source'), await pg.database('complete_target')]
    await using pipeline = await scene({ source, target })
    await createThings(source)
    await sql(source, 'create table other (id int primary key)')
    const early = await pipeline.command(['verify', '--json'])
    assert.equal(early.code, 3, early.stdout)
    assert.match(early.stdout, /"code":"NOT_BEGUN"/)
    await assertCompletes(pipeline)

    const equal = await pipeline.command(['verify'])
    assert.equal(equal.code, 0, equal.stdout + equal.stderr)
    assert.match(equal.stdout, /● equal\n {2}1,000 rows of 2 tables, /)
    await sql(target, `update thing set name = 'Tampered' where id = 7`)
    await sql(target, 'delete from thing where id = 8')
    const part = await pipeline.command(['verify', '--table', 'public.other'])
    assert.equal(part.code, 0, part.stdout + part.stderr)
    assert.match(part.stdout, /1 other table of the pipeline was not asked for/)
    const found = await pipeline.command(['verify'])
    assert.equal(found.code, 1, found.stdout + found.stderr)
    assert.match(
      found.stdout,
      / {2}public\.thing\n {4}✗ \(7\) {2}differs in name\n {4}✗ \(8\) {2}is only at the source\n/,
    )
    assert.doesNotMatch(found.stdout, /Tampered/)

    const dry = await pipeline.command(['repair', '--dry-run'])
    assert.equal(dry.code, 1, dry.stdout + dry.stderr)
    assert.match(dry.stdout, /2 rows would be written as the source has them\n {6}write {2}\(7\)\n {6}write {2}\(8\)\n/)
    await sql(target, `update thing set name = 'thing 7' where id = 7`)
    const repaired = await pipeline.command(['repair'])
    assert.equal(repaired.code, 0, repaired.stdout + repaired.stderr)
    assert.match(repaired.stdout, /1 written, 2 equal now/)
    const nothing = await pipeline.command(['repair', '--dry-run'])
    assert.equal(nothing.code, 0, nothing.stdout + nothing.stderr)
    assert.deepEqual(await pipeline.differences(['thing', 'other']), [])
    const again = await pipeline.command(['verify'])
    assert.equal(again.code, 0, again.stdout + again.stderr)
    for (const file of ['verify', 'repairs']) {
      const { mode } = await stat(join(pipeline.work.dir, '.crossfade', `${pipeline.name}.${file}.jsonl`))
      assert.equal(mode & 0o777, 0o600, file)
    }
  })
})
