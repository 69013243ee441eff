import { createHash } from 'node:crypto'
import { Failure } from '../../src/errors.ts'
import type { Form } from '../../src/model.ts'
import { Tag } from '../../src/rows.ts'
import type { CatalogColumn, CatalogTable, CatalogType } from './schema.ts'

/** Native forms by the type's oid; all other types travel as text. A domain is text: its input checks its constraints. */
const forms: ReadonlyMap<number, Form> = new Map([
  [16, 'bool'],
  [17, 'bytes'],
  [20, 'int64'],
  [21, 'int16'],
  [23, 'int32'],
  [26, 'int64'],
  [700, 'float32'],
  [701, 'float64'],
])
export function formOf(typeOid: number): Form {
  return forms.get(typeOid) ?? 'text'
}

/** The type whose binary form is a form's bytes. Oid columns (26) are int64 in the log: the sink casts. */
export const nativeOids: Readonly<Record<Form, number>> = {
  bool: 16,
  bytes: 17,
  int64: 20,
  int16: 21,
  int32: 23,
  float32: 700,
  float64: 701,
  text: 25,
}

/**
 * Formats of a whole table, best first. `binary:<hash>` only where the bytes of both ends mean the same; the hash is over
 * names and types of the columns, so it differs wherever they do.
 */
export function bulkFormats(table: CatalogTable): readonly string[] {
  const columns = table.columns.filter((column) => !column.generated)
  if (columns.length === 0) return []
  if (!columns.every((column) => column.binary)) return ['text']
  const signature = createHash('sha256')
  for (const column of columns) signature.update(`${JSON.stringify([column.name, column.type])}\n`)
  return [`binary:${signature.digest('hex').slice(0, 16)}`, 'text']
}

/** First oid of objects that do not come with the server; below, a type is the same everywhere. */
export const firstUserOid = 16384
/** Types whose binary form is the oid of an object, which is another one at the other end (regproc … regcollation). */
const objectOids: ReadonlySet<number> = new Set([24, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096, 4191])
/** int2vector, oidvector, tsquery: the server does not take back the binary form of an empty one. */
const lossyOids: ReadonlySet<number> = new Set([22, 30, 3615])

/** Whether a type's binary form means the same at another server of any supported version. */
export function isBinarySafe(type: CatalogType, typeOf: (oid: number) => CatalogType | undefined): boolean {
  if (type.kind === 'd') {
    const base = typeOf(type.base)
    return base !== undefined && isBinarySafe(base, typeOf)
  }
  // An enum's binary form is its label.
  if (type.kind === 'e') return true
  if (type.oid >= firstUserOid || !type.sends || type.kind === 'c' || type.kind === 'p') return false
  if (objectOids.has(type.oid) || lossyOids.has(type.oid)) return false
  if (!type.isArray) return true
  // An array carries the oid of its elements' type.
  const element = typeOf(type.element)
  return element !== undefined && element.oid < firstUserOid && isBinarySafe(element, typeOf)
}

/** Types whose equal values print alike, by oid: comparing and hashing the text is comparing and hashing the value. */
const equalInBytes: ReadonlySet<number> = new Set([
  16, 17, 18, 19, 20, 21, 23, 25, 26, 650, 774, 790, 829, 869, 1043, 1082, 1083, 1114, 1184, 1266, 1560, 1562, 2950,
  3220, 5069,
])
const numeric = 1700
const bpchar = 1042

/** Whether equality of this column is equality of its text (H6). A domain is judged by what it is made of. */
export function keyIsBytes(column: CatalogColumn): boolean {
  if (column.collation?.deterministic === false) return false
  if (column.base.kind === 'e') return true
  // A declared scale or length pads every value to it.
  if (column.base.oid === numeric || column.base.oid === bpchar) return column.baseTypmod >= 0
  return equalInBytes.has(column.base.oid)
}

const varchar = 1043

/** An expression for the text of a column as the server sends it; null for null. By the output function: a cast to text that is declared may print
 *  something else (booleans, addresses, padding), and a user's may be anything. Where none is, a cast is the same, and cheaper. */
export function textOf(column: CatalogColumn, quoted: string): string {
  const value = column.base.oid === column.typeOid ? quoted : `(${quoted})::${column.castType}`
  const { output, castToText, oid } = column.base
  return output === null || !castToText || oid === varchar
    ? `${value}::pg_catalog.text`
    : `pg_catalog.textin(${output}(${value}))`
}

/** An expression for the value that the column's type reads in a text. By the input function: a cast from text may be a function that reads something else
 *  (a regclass no number, a user's type whatever its owner likes). */
export function fromText({ base, castType }: CatalogColumn, text: string): string {
  const plain = (['text', 'varchar', 'bpchar'] as const).find((type) => !base.textCasts.includes(type))
  if (plain === 'text') return `${text}::${castType}`
  if (plain !== undefined) return `${text}::pg_catalog.${plain}::${castType}`
  if (base.kind !== 'b' || base.isArray)
    throw new Failure('TARGET_SHAPE', {
      object: `type ${base.schema}.${base.name}`,
      observed: 'text, varchar and bpchar have casts by functions to it',
      needed: 'one of them without, so that a text is read by the type itself',
    })
  return `${base.input.name}(pg_catalog.textout(${text})${[`, ${base.oid}::oid`, ', -1'].slice(0, base.input.arguments - 1).join('')})`
}

/** A cell of a row image as the text the server reads. */
export function cellText(form: Form, cell: { readonly tag: number; readonly bytes: Uint8Array }): string {
  const bytes = Buffer.from(cell.bytes.buffer, cell.bytes.byteOffset, cell.bytes.byteLength)
  return cell.tag === Tag.native ? nativeText(form, bytes) : bytes.toString('utf8')
}

/** Text that the database's own input reads as the value of a native cell. */
export function nativeText(form: Form, bytes: Buffer): string {
  switch (form) {
    case 'bool':
      return bytes[0] === 0 ? 'f' : 't'
    case 'int16':
      return String(bytes.readInt16BE())
    case 'int32':
      return String(bytes.readInt32BE())
    case 'int64':
      return String(bytes.readBigInt64BE())
    case 'float32':
      return float32Text(bytes.readFloatBE())
    case 'float64':
      return float64Text(bytes.readDoubleBE())
    case 'bytes':
      return `\\x${bytes.toString('hex')}`
    case 'text':
      return bytes.toString('utf8')
    default:
      return form satisfies never
  }
}

function float64Text(value: number): string {
  return Object.is(value, -0) ? '-0' : String(value)
}

/** The shortest decimal that reads back as the same float32: JavaScript prints the double it is kept in. */
function float32Text(value: number): string {
  if (!Number.isFinite(value) || Number.isInteger(value)) return float64Text(value)
  for (let digits = 6; digits < 9; digits++) {
    const rounded = Number(value.toPrecision(digits))
    if (Math.fround(rounded) === value) return String(rounded)
  }
  return value.toPrecision(9)
}
