import { Failure } from '../../src/errors.ts'
import { origin, type Position } from '../../src/model.ts'

/** A place in the write-ahead log as 16 lower-case hex digits, which sort as the numbers do. */
export function positionOf(lsn: bigint): Position {
  return lsn.toString(16).padStart(16, '0') as Position
}
/** The place eight bytes of a message name; no number is made of them. */
export function readPosition(bytes: Buffer, at: number): Position {
  if (at + 8 > bytes.length) throw new RangeError(`no position at ${at} of ${bytes.length}`)
  return bytes.toString('hex', at, at + 8) as Position
}
/** The number behind a position; 0 for the origin. Throws CONFIG_INVALID where text from outside is none. */
export function lsnOf(position: Position): bigint {
  if (position === origin) return 0n
  if (!/^[0-9a-f]{16}$/.test(position)) {
    throw new Failure('CONFIG_INVALID', { object: `position ${position}`, needed: '16 lower-case hex digits' })
  }
  return BigInt(`0x${position}`)
}
/** What a snapshot at a slot's consistent point holds: commits that start before it. One may start exactly there, and is streamed. */
export function snapshotPosition(consistentPoint: bigint): Position {
  return positionOf(consistentPoint - 1n)
}
/** Text as the server reads and prints it: 16/B374D848. */
export function printLsn(lsn: bigint): string {
  return `${(lsn >> 32n).toString(16).toUpperCase()}/${(lsn & 0xffffffffn).toString(16).toUpperCase()}`
}
export function parseLsn(text: string): bigint {
  const match = /^([0-9a-f]{1,8})\/([0-9a-f]{1,8})$/i.exec(text)
  if (!match) throw new RangeError(`no place in the write-ahead log: ${text}`)
  return (BigInt(`0x${match[1]}`) << 32n) | BigInt(`0x${match[2]}`)
}
