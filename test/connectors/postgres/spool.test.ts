import assert from 'node:assert/strict'
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import fc from 'fast-check'
import { openSpool, type Replay, type Spool } from '../../../connectors/postgres/spool.ts'

async function folder(t: TestContext): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'crossfade-spool-'))
  t.after(() => rm(dir, { recursive: true, force: true }))
  return dir
}
/** An insert's first bytes: the type, the number of its part, and text. */
function message(part: number, text: string): Buffer {
  const head = Buffer.alloc(5)
  head[0] = 0x49
  head.writeUInt32BE(part, 1)
  return Buffer.concat([head, Buffer.from(text)])
}
async function texts(replay: Replay, atATime = Infinity): Promise<string[]> {
  const all: string[] = []
  for (let end = false; !end;) {
    let taken = 0
    end = await replay.next(
      (one) => {
        taken++
        all.push(one.toString('utf8', 5))
      },
      () => taken >= atATime,
    )
  }
  replay.close()
  return all
}

test('brings back what was added, in order, without aborted parts, from memory and disk', async (t) => {
  const dir = await folder(t)
  const action = fc.oneof(
    {
      weight: 20,
      arbitrary: fc.record({
        kind: fc.constant('add' as const),
        xid: fc.integer({ min: 1, max: 3 }),
        part: fc.nat(3),
        size: fc.nat(700),
      }),
    },
    {
      weight: 1,
      arbitrary: fc.record({
        kind: fc.constant('abort' as const),
        xid: fc.integer({ min: 1, max: 3 }),
        part: fc.nat(3),
        size: fc.nat(0),
      }),
    },
    {
      weight: 1,
      arbitrary: fc.record({
        kind: fc.constant('commit' as const),
        xid: fc.integer({ min: 1, max: 3 }),
        part: fc.nat(0),
        size: fc.integer({ min: 1, max: 5 }),
      }),
    },
  )
  await fc.assert(
    fc.asyncProperty(
      fc.array(action, { maxLength: 120 }),
      fc.constantFrom(0, 500, 1 << 20),
      async (actions, memoryBytes) => {
        const spool = openSpool(dir, { memoryBytes, diskBytes: 1 << 30 })
        const model = new Map<number, { part: number; text: string }[]>()
        let number = 0
        for (const { kind, xid, part, size } of [
          ...actions,
          ...[1, 2, 3].map((xid) => ({ kind: 'commit' as const, xid, part: 0, size: 3 })),
        ]) {
          const whole = 10 * xid + part
          if (kind === 'add') {
            const text = `${number++}${'x'.repeat(size)}`
            spool.add(xid, message(whole, text))
            model.set(xid, [...(model.get(xid) ?? []), { part: whole, text }])
          } else if (kind === 'abort') {
            // Part 0 stands for the transaction itself.
            spool.abort(xid, part === 0 ? xid : whole)
            if (part === 0) model.delete(xid)
            else if (model.has(xid))
              model.set(
                xid,
                (model.get(xid) ?? []).filter((each) => each.part !== whole),
              )
            // A part that was aborted sends no more.
            if (part !== 0) break
          } else {
            assert.deepEqual(
              await texts(spool.replay(xid), size),
              (model.get(xid) ?? []).map(({ text }) => text),
            )
            model.delete(xid)
          }
        }
        spool.close()
        assert.equal(spool.memoryBytes, 0)
        assert.equal(spool.diskBytes, 0)
        assert.deepEqual(await readdir(dir), [])
      },
    ),
    { numRuns: 150 },
  )
})

test('a message larger than a piece of the file comes whole', async (t) => {
  const spool = openSpool(await folder(t), { memoryBytes: 1000, diskBytes: 1 << 30 })
  const large = 'l'.repeat(1 << 20)
  for (const text of ['a', large, 'b', large, 'c']) spool.add(1, message(1, text))
  assert.ok(spool.diskBytes > 2 << 20)
  assert.deepEqual(await texts(spool.replay(1)), ['a', large, 'b', large, 'c'])
  spool.close()
})

test('deletes what a crash left, and leaves nothing when closed', async (t) => {
  const dir = await folder(t)
  await writeFile(join(dir, '77.spool'), 'stale')
  const spool = openSpool(dir, { memoryBytes: 0, diskBytes: 1 << 30 })
  assert.deepEqual(await readdir(dir), [])
  spool.add(5, message(5, 'x'))
  assert.match((await readdir(dir)).join(), /^\w+-5\.spool$/)
  spool.abort(5, 5)
  assert.deepEqual(await readdir(dir), [])
  spool.add(6, message(6, 'x'))
  spool.close()
  assert.deepEqual(await readdir(dir), [])
})

test('says SPOOL_FULL beyond the budget and where the folder cannot be written', async (t) => {
  const dir = await folder(t)
  const spool: Spool = openSpool(dir, { memoryBytes: 100, diskBytes: 1000 })
  const fill = (): void => {
    for (let i = 0; i < 100; i++) spool.add(1, message(1, 'x'.repeat(50)))
  }
  assert.throws(fill, { code: 'SPOOL_FULL', policy: 'retry' })
  spool.close()
  await writeFile(join(dir, 'file'), '')
  assert.throws(() => openSpool(join(dir, 'file', 'below'), { memoryBytes: 1, diskBytes: 1 }), { code: 'SPOOL_FULL' })
})
