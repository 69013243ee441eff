import { arrayText, type TypeColumn } from './type-tables.ts'

/** Numbers in [0, 1), the same for the same seed (mulberry32). */
export function randomFrom(seed: number): () => number {
  let state = seed | 0
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296
  }
}

type Random = () => number
type Make = (random: Random) => string

const int = (random: Random, below: number): number => Math.floor(random() * below)
const pick = <Item>(random: Random, items: readonly Item[]): Item => items[int(random, items.length)] as Item
const some = (random: Random, most: number, make: Make): string[] =>
  Array.from({ length: int(random, most + 1) }, () => make(random))
const bits = (random: Random, count: number): bigint => {
  let value = 0n
  for (let i = 0; i < count; i += 16) value = (value << 16n) | BigInt(int(random, 65536))
  return BigInt.asUintN(count, value)
}
/** Of every size: as many large as small ones. */
const integer =
  (width: number): Make =>
  (random) =>
    String(BigInt.asIntN(width, bits(random, width)) >> BigInt(int(random, width)))
const unsigned =
  (width: number): Make =>
  (random) =>
    String(bits(random, width) >> BigInt(int(random, width)))
const digits = (random: Random, count: number): string =>
  Array.from({ length: count }, () => String(int(random, 10))).join('')
const hex = (random: Random, count: number): string =>
  Array.from({ length: count }, () => int(random, 16).toString(16)).join('')
const pad = (value: number, width = 2): string => String(value).padStart(width, '0')

const word = new DataView(new ArrayBuffer(8))
const float64: Make = (random) => {
  word.setBigUint64(0, bits(random, 64))
  const value = pick(random, [word.getFloat64(0), int(random, 1e6) / 1000, -random(), 0])
  return Object.is(value, -0) || random() < 0.02 ? '-0' : String(value)
}
const float32: Make = (random) => {
  word.setUint32(0, int(random, 4294967296))
  return pick(random, [String(word.getFloat32(0)), '-0', String(Math.fround(random()))])
}
const numeric: Make = (random) =>
  random() < 0.01
    ? 'NaN'
    : `${pick(random, ['', '-'])}${digits(random, 1 + int(random, 30))}${pick(random, ['', `.${digits(random, 1 + int(random, 20))}`])}`

const odd = Array.from(
  '\\"\'{}(),:;.[]<>|&!*@#$%^~` \t\n\r\v\f\b\u0001\u007f\u0085\u00a0àéßüİı\u2028\ufeff\uffff𝄞👨‍👩‍👧NULLnull10',
)
const character: Make = (random) => {
  const kind = random()
  if (kind < 0.4) return pick(random, odd)
  if (kind < 0.8) return String.fromCharCode(32 + int(random, 95))
  if (kind < 0.9) return String.fromCodePoint(1 + int(random, 0xd7ff))
  return String.fromCodePoint(0xe000 + int(random, 0x110000 - 0xe000))
}
const text =
  (most: number): Make =>
  (random) =>
    some(random, random() < 0.1 ? most : Math.min(most, 12), character).join('')
const letters = Array.from('abcxyzABCü1_')
const plain: Make = (random) => Array.from({ length: 1 + int(random, 8) }, () => pick(random, letters)).join('')
const label: Make = (random) => `a${plain(random).replaceAll('ü', 'u')}`

const date: Make = (random) => {
  const year = pick(random, [1 + int(random, 4000), 1 + int(random, 200_000), 1900 + int(random, 200)])
  return `${pad(year, 4)}-${pad(1 + int(random, 12))}-${pad(1 + int(random, 28))}${year < 4700 && random() < 0.1 ? ' BC' : ''}`
}
const clock: Make = (random) => {
  const fraction = random() < 0.5 ? '' : `.${digits(random, 1 + int(random, 6))}`
  return `${pad(int(random, 24))}:${pad(int(random, 60))}:${pad(int(random, 60))}${fraction}`
}
const zone: Make = (random) => `${pick(random, ['+', '-'])}${pad(int(random, 15))}:${pad(int(random, 60))}`
const moment =
  (zoned: boolean): Make =>
  (random) => {
    const day = date(random)
    const era = day.endsWith(' BC') ? ' BC' : ''
    return `${day.replace(' BC', '')} ${clock(random)}${zoned ? zone(random) : ''}${era}`
  }
const interval: Make = (random) =>
  `${integer(31)(random)} mons ${integer(31)(random)} days ${pick(random, ['', '-'])}${int(random, 100_000)}:${pad(int(random, 60))}:${pad(int(random, 60))}.${digits(random, 6)}`

const space: Make = (random) => pick(random, ['', '', ' ', '  ', '\n', '\t'])
const jsonNumber: Make = (random) =>
  pick(random, [
    '-0',
    '1.0',
    '1.00',
    '1E+2',
    '1e-7',
    String(int(random, 1000)),
    `${int(random, 99)}.${digits(random, 3)}`,
  ])
const json: Make = (random) => {
  const kind = random()
  const around = (value: string): string => `${space(random)}${value}${space(random)}`
  if (kind < 0.25) return around(jsonNumber(random))
  if (kind < 0.5) return around(JSON.stringify(text(10)(random)))
  if (kind < 0.6) return around(pick(random, ['true', 'false', 'null']))
  if (kind < 0.8) return around(`[${some(random, 3, json).join(',')}]`)
  return around(`{${some(random, 3, (each) => `${around(JSON.stringify(text(4)(each)))}:${json(each)}`).join(',')}}`)
}

const point: Make = (random) => `(${float64(random)},${float64(random)})`
const points = (random: Random): string => [point(random), ...some(random, 3, point)].join(',')
const cidrV4: Make = (random) => {
  const width = int(random, 33)
  const address = width === 0 ? 0 : ((int(random, 4294967296) >>> (32 - width)) << (32 - width)) >>> 0
  return `${[24, 16, 8, 0].map((shift) => (address >>> shift) & 255).join('.')}/${width}`
}
const inet: Make = (random) =>
  random() < 0.5
    ? `${Array.from({ length: 4 }, () => int(random, 256)).join('.')}/${int(random, 33)}`
    : `${Array.from({ length: 8 }, () => pick(random, ['0', hex(random, 4)])).join(':')}/${int(random, 129)}`
const bitText = (random: Random): string => Array.from({ length: int(random, 70) }, () => int(random, 2)).join('')

/** Bounds in order: two values of a kind whose texts' order is that of `rank`. */
const range =
  (make: Make, rank: (text: string) => number | bigint): Make =>
  (random) => {
    if (random() < 0.05) return 'empty'
    const [one, two] = [make(random), make(random)]
    const [from, to] = rank(one) <= rank(two) ? [one, two] : [two, one]
    const open = random()
    return `${pick(random, ['[', '('])}${open < 0.1 ? '' : `"${from}"`},${open > 0.9 ? '' : `"${to}"`}${pick(random, [']', ')'])}`
  }
const multirange =
  (one: Make): Make =>
  (random) =>
    `{${some(random, 3, one)
      .filter((each) => each !== 'empty')
      .join(',')}}`
const day: Make = (random) => `${1900 + int(random, 200)}-${pad(1 + int(random, 12))}-${pad(1 + int(random, 28))}`
const instant: Make = (random) => `${day(random)} ${clock(random)}`
const ofDay = (value: string): number =>
  Number(value.slice(0, 10).replaceAll('-', '')) + Number(`0.${value.slice(11).replaceAll(/\D/g, '')}`)
const int4range = range((random) => integer(31)(random), Number)
const int8range = range((random) => integer(63)(random), BigInt)
const smallNumeric: Make = (random) => `${int(random, 1000)}.${digits(random, int(random, 5)) || '0'}`
const numrange = range(smallNumeric, Number)
const daterange = range(day, ofDay)
const tsrange = range(instant, ofDay)
const tstzrange = range((random) => `${instant(random)}+00`, ofDay)
const lexeme: Make = (random) =>
  `'${plain(random)}${pick(random, ['', ' ', "''", '\\\\'])}'${pick(random, ['', `:${1 + int(random, 16383)}${pick(random, ['', 'A', 'B'])}`])}`
const mood: Make = (random) => pick(random, ['sad', "it's ok", 'so, "happy"', '', '\\'])
/** A text as a composite's input reads it. */
const field = (value: string): string => `"${value.replaceAll(/["\\]/g, '$&$&')}"`
const pair: Make = (random) =>
  `(${pick(random, ['', integer(32)(random)])},${pick(random, ['', field(text(3)(random).slice(0, 1).toWellFormed().replaceAll('\ufffd', ''))])},${field(arrayText([mood(random), mood(random)], ',', int(random, 4)))})`
const hstore: Make = (random) =>
  some(
    random,
    4,
    (each) => `"${plain(each)}"=>${pick(each, ['NULL', `"${text(6)(each).replaceAll(/["\\]/g, '\\$&')}"`])}`,
  ).join(', ')

/** By the type's name; the values written by hand stand beside them. */
const makers: Readonly<Record<string, Make>> = {
  int2: integer(16), int4: integer(32), int8: integer(64), numeric, float4: float32, float8: float64,
  money: (random) => `${integer(50)(random)}.${digits(random, 2)}`,
  text: text(200), varchar: text(100), bpchar: text(60), citext: text(40), raw: text(20), three: text(20),
  name: (random) => text(15)(random), refcursor: text(10), character_data: text(20), sql_identifier: text(12),
  short: text(2), padded: (random) => text(3)(random), 'varchar(4)': text(2), 'char(4)': text(2),
  char: (random) => String.fromCharCode(1 + int(random, 127)),
  bytea: (random) => `\\x${hex(random, 2 * int(random, 100))}`,
  date, time: clock, timetz: (random) => `${clock(random)}${zone(random)}`, timestamp: moment(false), timestamptz: moment(true), interval,
  json, jsonb: json, uuid: (random) => hex(random, 32), inet, cidr: cidrV4,
  macaddr: (random) => hex(random, 12), macaddr8: (random) => hex(random, 16), bit: (random) => bitText(random) || '1', varbit: bitText,
  point, lseg: (random) => `[${point(random)},${point(random)}]`, box: (random) => `${point(random)},${point(random)}`,
  path: (random) => pick(random, [`[${points(random)}]`, `(${points(random)})`]), polygon: (random) => `(${points(random)})`,
  circle: (random) => `<${point(random)},${int(random, 1000)}>`,
  tsvector: (random) => some(random, 5, lexeme).join(' '),
  tsquery: (random) => [plain(random), ...some(random, 3, plain)].join(pick(random, [' & ', ' | ', ' <-> ', ' & !'])),
  oid: unsigned(32), xid: unsigned(32), xid8: unsigned(64), cid: unsigned(32),
  tid: (random) => `(${unsigned(32)(random)},${int(random, 65536)})`,
  pg_lsn: (random) => `${hex(random, 8)}/${hex(random, 8)}`,
  int2vector: (random) => some(random, 5, integer(16)).join(' '), oidvector: (random) => some(random, 5, unsigned(32)).join(' '),
  int4range, int8range, numrange, daterange, tsrange, tstzrange,
  int4multirange: multirange(int4range), int8multirange: multirange(int8range), nummultirange: multirange(numrange),
  datemultirange: multirange(daterange), tsmultirange: multirange(tsrange), tstzmultirange: multirange(tstzrange),
  mood, positive: (random) => String(1 + int(random, 2147483647)), exact: (random) => `${int(random, 99999)}.${digits(random, 3)}`,
  pair, tags: (random) => arrayText(some(random, 5, text(8)), ',', 0), hstore,
  ltree: (random) => some(random, 4, label).join('.'), cube: (random) => `(${[float64(random), ...some(random, 3, float64)].filter((each) => /^-?[\d.]+$/.test(each)).join(',') || 0})`,
  xml: (random) => `<a b="${plain(random)}">${space(random)}<c/>${plain(random)}</a>`,
  'numeric(6,2)': (random) => `${pick(random, ['', '-'])}${int(random, 9999)}.${digits(random, 2)}`,
  'timestamptz(3)': moment(true), 'timestamp(0)': moment(false),
} // prettier-ignore

/** A random value of the type: made, or one of those written by hand, which are all that some types have. Large ones are left out. */
export function randomValue({ name, values }: TypeColumn, random: () => number): string {
  const make = makers[name]
  if (make !== undefined && random() > 0.1) return make(random)
  const value = pick(random, values)
  return value.length < 5000 ? value : (values.find(({ length }) => length < 5000) ?? value)
}

/** An array of random values as its input function reads it: a list with a null, empty, of two dimensions, or with bounds below zero. */
export function randomArray(column: TypeColumn, random: () => number): string {
  const values = some(random, 3, (each) => randomValue(column, each))
  return arrayText(values, column.delimiter ?? ',', int(random, 4))
}
