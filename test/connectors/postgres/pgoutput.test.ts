import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { changeQueue, type ChangeQueue } from '../../../connectors/postgres/change-queue.ts'
import {
  decoder,
  readStreamAbort,
  readStreamCommit,
  readStreamStart,
  type Decoder,
  type DecoderOptions,
} from '../../../connectors/postgres/pgoutput.ts'
import { lsnOf, parseLsn, positionOf, printLsn, snapshotPosition } from '../../../connectors/postgres/position.ts'
import { Failure } from '../../../src/errors.ts'
import { origin, type Position, type TableSchema } from '../../../src/model.ts'
import { flatten, type Flat } from '../../support/flatten.ts'
import { fixedTables } from '../../support/pg-stream.ts'

/** As PostgreSQL 18 sent them, protocol 4. Tables a (id int primary key, name text, m mood) and f (x int, y text), identity full. */
const real = {
  messageOut: '4d000000000001b8b3487100000000036f7574',
  begin: '420000000001b8b348000303e49e4a343b000002f2',
  type: '59000040027075626c6963006d6f6f6400',
  relationA:
    '52000040057075626c69630061006400030169640000000017ffffffff006e616d650000000019ffffffff006d0000004002ffffffff',
  insert: '49000040054e00037400000001317400000002c3a96e',
  update: '55000040054e00037400000001317400000001786e',
  moved: '55000040054b00037400000001326e6e4e0003740000000133740000000178740000000161',
  delete: '44000040054b00037400000001316e6e',
  relationF: '520000400d7075626c696300660066000201780000000017ffffffff01790000000019ffffffff',
  updateFull: '550000400d4f00027400000001316e4e000274000000013174000000017a',
  deleteFull: '440000400d4f000274000000013174000000017a',
  truncate: '540000000203000040050000400d',
  messageIn: '4d010000000001b8b310700000000002696e',
  commit: '43000000000001b8b3480000000001b8b588000303e49e4a343b',
  origin: '4f000000000000123463726f7373666164653a783a3100',
  streamStart: '53000002f501',
  streamRelation:
    '52000002f5000040057075626c69630061006400030169640000000017ffffffff006e616d650000000019ffffffff006d0000004002ffffffff',
  streamInsert: '49000002f5000040054e000374000000043130303074000000036269676e',
  streamAbort: '41000002f5000002f6',
  streamCommit: '63000002f5000000000001c0adc80000000001c0adf8000303e49e4a99f8',
} as const
const transaction = [
  real.messageOut,
  real.begin,
  real.type,
  real.relationA,
  real.insert,
  real.update,
  real.moved,
  real.delete,
  real.relationF,
  real.updateFull,
  real.deleteFull,
  real.truncate,
  real.messageIn,
  real.commit,
]
const place = '0000000001b8b348'

const schema = (name: string, columns: readonly string[], before: 'key' | 'row'): TableSchema => ({
  table: { schema: 'public', name },
  version: 1,
  columns: columns.map((each) => ({ name: each, type: 'text', form: 'text', nullable: true })),
  key: before === 'key' ? [0] : [],
  before,
  shape: 'columns',
  pinned: false,
})
const schemas = { a: schema('a', ['id', 'name', 'm'], 'key'), f: schema('f', ['x', 'y'], 'row') }

function bench(options: Partial<DecoderOptions> = {}): { queue: ChangeQueue; decoder: Decoder } {
  const queue = changeQueue()
  return {
    queue,
    decoder: decoder({
      queue,
      tables: fixedTables(({ table }) => (table.name === 'a' ? schemas.a : schemas.f)),
      ours: (name) => name.startsWith('crossfade:x:'),
      after: origin,
      ...options,
    }),
  }
}
const feed = (to: Decoder, messages: readonly string[], streamed = false): void => {
  for (const hex of messages) to.decode(Buffer.from(hex, 'hex'), streamed)
}
function drain(queue: ChangeQueue): Flat[] {
  const all: Flat[] = []
  for (let event = queue.pull(); event; event = queue.pull()) all.push(...flatten(event))
  return all
}

test('decodes a transaction into images, effects and messages with their marks', () => {
  const { queue, decoder } = bench()
  feed(decoder, transaction)
  const id = '754'
  const base = { kind: 'change', position: place, id, committedAt: Date.parse('2026-11-22T23:29:25.051Z') } as const
  const all = drain(queue)
  const changes = all.filter((flat) => flat.kind === 'change')
  const at = changes[0]?.committedAt ?? 0
  assert.ok(at > Date.parse('2025-01-01') && at < Date.parse('2035-01-01'))
  const want = (seq: number, table: string, op: number, old: unknown[], fresh: unknown[]): unknown => ({
    ...base,
    committedAt: at,
    seq,
    table,
    op,
    old,
    new: fresh,
  })
  assert.deepEqual(all, [
    { kind: 'message', position: '0000000001b8b347', prefix: 'q', content: 'out' },
    want(0, 'public.a', 0, [], ['1', 'é', null]),
    want(4, 'public.a', 1, [], ['1', 'x', null]),
    want(8, 'public.a', 1, ['2', null, null], ['3', 'x', 'a']),
    want(12, 'public.a', 2, ['1', null, null], []),
    want(16, 'public.f', 1, ['1', null], ['1', 'z']),
    want(20, 'public.f', 2, ['1', 'z'], []),
    {
      kind: 'effect',
      position: place,
      seq: 24,
      effect: {
        kind: 'truncate',
        tables: [
          { schema: 'public', name: 'a' },
          { schema: 'public', name: 'f' },
        ],
        cascade: true,
        restartCounters: true,
      },
    },
    { kind: 'message', position: place, prefix: 'p', content: 'in' },
  ])
  assert.equal(decoder.reached, place)
  assert.equal(decoder.open, false)
})

test('H24: rows of a table that was left out are not handed on, and count; a later transaction may be of interest again', () => {
  const [whole, part] = [bench(), bench({ tables: fixedTables(() => schemas.a, [{ oid: 0x400d }]) })]
  feed(whole.decoder, transaction)
  feed(part.decoder, transaction)
  const all = drain(whole.queue)
  const ofF = (flat: Flat): boolean => flat.kind === 'change' && flat.table === 'public.f'
  const wanted = all
    .filter((flat) => !ofF(flat))
    .map((flat) =>
      flat.kind === 'effect' && flat.effect.kind === 'truncate'
        ? { ...flat, effect: { ...flat.effect, tables: [schemas.a.table] } }
        : flat,
    )
  assert.ok(wanted.length > 2 && wanted.length < all.length)
  assert.deepEqual(drain(part.queue), wanted)

  const until = place as Position
  const left = [0x4005, 0x400d].map((oid) => ({ oid, until }))
  const later = bench({ tables: fixedTables(() => schemas.a, left) })
  feed(later.decoder, transaction)
  assert.ok(drain(later.queue).every(({ kind }) => kind === 'message'))
  later.decoder.begin({ xid: 9, position: '0000000001b8b588' as Position, committedAt: 0 })
  feed(later.decoder, [real.insert])
  assert.equal(drain(later.queue).length, 1)
})

test('H26: a recorded change takes effect at its mark, also where the table is not described anew', () => {
  let ahead = true
  const effect = { kind: 'schema', schema: schemas.a, changes: [] } as const
  const tables: DecoderOptions['tables'] = {
    ...fixedTables(() => schemas.a),
    ahead: () => ahead,
    at(_, { seq }) {
      if (!ahead || seq < 8) return schemas.a
      ahead = false
      return effect
    },
  }
  const { queue, decoder } = bench({ tables })
  feed(decoder, [real.begin, real.relationA, real.insert, real.insert, real.insert])
  const kinds = drain(queue).map((flat) => (flat.kind === 'message' ? '' : `${flat.kind} ${flat.seq}`))
  assert.deepEqual(kinds, ['change 0', 'change 4', 'effect 8', 'change 12'])
})

test('H24: changes of a table that was left out keep the numbers they had', () => {
  const position = place as Position
  const marks = [4 * 4, 4 * 5, 4 * 7].map((seq) => ({ position, seq }))
  const { queue, decoder } = bench({ tables: fixedTables(() => schemas.a, [{ oid: 0x400d, marks }]) })
  feed(decoder, transaction)
  const numbers = drain(queue).flatMap((flat) => (flat.kind === 'message' ? [] : [flat.seq / 4]))
  // Two before its update, one before its delete; the truncate of both is behind them.
  assert.deepEqual(numbers, [0, 1, 2, 3, 9])
})

test('reads the frames of transactions in progress, and their messages behind their number', () => {
  assert.equal(readStreamStart(Buffer.from(real.streamStart, 'hex')), 757)
  assert.deepEqual(readStreamAbort(Buffer.from(real.streamAbort, 'hex')), { xid: 757, part: 758 })
  const commit = readStreamCommit(Buffer.from(real.streamCommit, 'hex'))
  assert.equal(commit.xid, 757)
  assert.equal(commit.position, '0000000001c0adc8')
  const { queue, decoder } = bench()
  decoder.begin(commit)
  feed(decoder, [real.streamRelation, real.streamInsert], true)
  decoder.commit(commit.position)
  const [flat] = drain(queue)
  assert.ok(flat?.kind === 'change')
  assert.deepEqual(flat.new, ['1000', 'big', null])
})

test('drops transactions of an origin of ours and those up to the place it begins behind, but learns their tables', () => {
  const { queue, decoder } = bench()
  feed(decoder, [real.begin, real.origin, real.relationA, real.insert, real.messageIn, real.commit])
  assert.deepEqual(drain(queue), [])
  assert.equal(decoder.reached, place)
  const later = bench({ after: place as Position })
  feed(later.decoder, [real.begin, real.relationA, real.insert, real.truncate, real.commit])
  assert.deepEqual(drain(later.queue), [])
  feed(later.decoder, [real.begin.replace('01b8b348', '01b8b350'), real.insert])
  assert.equal(drain(later.queue).length, 1)
})

test('another origin is kept', () => {
  const { queue, decoder } = bench({ ours: (name) => name.startsWith('crossfade:other:') })
  feed(decoder, [real.begin, real.origin, real.relationA, real.insert, real.commit])
  assert.equal(drain(queue).length, 1)
})

test('fills absent cells of a new row from a whole old one', () => {
  const { queue, decoder } = bench()
  feed(decoder, [real.begin, real.relationF, '550000400d4f000274000000013174000000017a4e0002740000000132' + '75'])
  const [flat] = drain(queue)
  assert.ok(flat?.kind === 'change')
  assert.deepEqual(
    [flat.old, flat.new],
    [
      ['1', 'z'],
      ['2', 'z'],
    ],
  )
})

test('fills an absent key of a new row from the old key, and nothing else', () => {
  const { queue, decoder } = bench()
  feed(decoder, [real.begin, real.relationA, '55000040054b00037400000001326e6e4e00037574000000017875'])
  const [flat] = drain(queue)
  assert.ok(flat?.kind === 'change')
  assert.deepEqual([flat.old?.[0], flat.new], ['2', ['2', 'x', undefined]])
})

test('a table that is not as recorded stops at its first row, not before', () => {
  const failure = new Failure('TABLE_CHANGED', { object: 'public.a' })
  const { decoder } = bench({ tables: fixedTables(() => failure) })
  feed(decoder, [real.begin, real.relationA])
  assert.throws(() => feed(decoder, [real.insert]), failure)
})

test('numbers go on where a batch ends, and memory is used again only after the next pull', () => {
  const { queue, decoder } = bench()
  feed(decoder, [real.begin, real.relationA])
  const rows = 40_000
  for (let i = 0; i < rows; i++) feed(decoder, [real.insert])
  feed(decoder, [real.commit])
  assert.ok(queue.bytes > 0)
  const seqs: number[] = []
  let batches = 0
  for (let event = queue.pull(); event; event = queue.pull()) {
    batches++
    for (const flat of flatten(event)) if (flat.kind === 'change') seqs.push(flat.seq)
  }
  assert.ok(batches > 1)
  assert.deepEqual(
    seqs,
    Array.from({ length: rows }, (_, i) => 4 * i),
  )
  assert.equal(queue.bytes, 0)
})

test('bytes that make no sense are STREAM_MALFORMED and nothing else', () => {
  const edits = fc.array(
    fc.record({
      message: fc.nat(),
      at: fc.nat(),
      kind: fc.constantFrom('set', 'cut', 'grow', 'drop', 'swap'),
      byte: fc.nat(255),
    }),
    { minLength: 1, maxLength: 4 },
  )
  const all = Object.values(real)
  fc.assert(
    fc.property(edits, fc.boolean(), (changes, streamed) => {
      const messages = [...transaction, ...all].map((hex) => Buffer.from(hex, 'hex'))
      for (const { message, at, kind, byte } of changes) {
        const i = message % messages.length
        const one = messages[i] ?? Buffer.alloc(0)
        if (kind === 'set' && one.length > 0) one[at % one.length] = byte
        else if (kind === 'cut') messages[i] = one.subarray(0, at % (one.length + 1))
        else if (kind === 'grow') messages[i] = Buffer.concat([one, Buffer.alloc(1 + (at % 9), byte)])
        else if (kind === 'drop') messages.splice(i, 1)
        else messages.splice(i, 1, messages[at % messages.length] ?? one)
      }
      const { queue, decoder } = bench()
      for (const message of messages) {
        for (const read of [
          () => decoder.decode(message, streamed),
          () => readStreamStart(message),
          () => readStreamAbort(message),
          () => readStreamCommit(message),
        ]) {
          try {
            read()
          } catch (error) {
            assert.ok(error instanceof Failure, String(error))
            assert.equal(error.code, 'STREAM_MALFORMED')
          }
        }
      }
      // Whatever was taken can be read: no cell lies outside of its image.
      drain(queue)
    }),
    { numRuns: 1000 },
  )
})

test('places are printed and read as the server does, and sort as numbers do', () => {
  assert.equal(printLsn(0x16b374d848n), '16/B374D848')
  assert.equal(parseLsn('16/B374D848'), 0x16b374d848n)
  assert.equal(positionOf(0x16b374d848n), '00000016b374d848')
  assert.equal(lsnOf(positionOf(255n)), 255n)
  assert.equal(lsnOf(origin), 0n)
  assert.equal(snapshotPosition(0x100n), '00000000000000ff')
  assert.throws(() => lsnOf('0/1' as Position), { code: 'CONFIG_INVALID' })
  assert.throws(() => parseLsn('nonsense'))
  const lsn = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n })
  fc.assert(
    fc.property(lsn, lsn, (a, b) => {
      assert.equal(parseLsn(printLsn(a)), a)
      assert.equal(positionOf(a) < positionOf(b), a < b)
    }),
  )
})
