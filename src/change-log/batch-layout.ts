import { crc32c } from '@node-rs/crc32'
/** Kafka's record batch, format 2: a header of 61 bytes, then the records, compressed together or not at all. */
export const At = {
  baseOffset: 0,
  length: 8,
  leaderEpoch: 12,
  magic: 16,
  crc: 17,
  attributes: 21,
  lastDelta: 23,
  baseTimestamp: 27,
  maxTimestamp: 35,
  producerId: 43,
  producerEpoch: 51,
  sequence: 53,
  count: 57,
  records: 61,
} as const
export const Attribute = { codec: 7, gzip: 1, zstd: 4, transactional: 16, control: 32 } as const
/** What a topic accepts as one batch, where nothing else is configured. */
export const defaultMessageBytes: number = 8 * 1024 * 1024
/** The most that can be configured: sizes stay below 2^31, buffers being powers of two. */
export const largestMessageBytes: number = 2 ** 30
/** Of that, what the broker's own account may keep. */
export const batchMargin = 1024
/** What one batch may decompress to, where topics take no more as it is. */
const decompressedBytes = 64 * 1024 * 1024

/** What one batch may hold uncompressed, for writers and readers of topics that take batches of `messageBytes`. */
export function largestDecompressed(messageBytes: number): number {
  return Math.max(decompressedBytes, messageBytes)
}

/** A view of the same bytes with Node's readers and writers. */
export function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

/** The checksum as it stands in the header: of all after it, so not of offset, length and leader epoch. */
export function checksum(batch: Buffer, start: number, end: number): number {
  return crc32c(batch.subarray(start + At.attributes, end))
}

/** The whole batch's size from its header at `start`; 0 if fewer than a header's bytes are left or it cannot be a batch. */
export function batchSize(bytes: Buffer, start: number): number {
  if (start + At.records > bytes.length || bytes[start + At.magic] !== 2) return 0
  const size = bytes.readInt32BE(start + At.length) + At.leaderEpoch
  return size < At.records ? 0 : size
}

export function readOffset(bytes: Buffer, at: number): number {
  const high = bytes.readInt32BE(at)
  // Offsets stay below 2^53: an offset beyond is no offset.
  return high < 0 || high >= 0x20_0000 ? -1 : high * 0x1_0000_0000 + bytes.readUInt32BE(at + 4)
}

export function writeOffset(bytes: Buffer, offset: number, at: number): void {
  bytes.writeInt32BE(Math.floor(offset / 0x1_0000_0000), at)
  bytes.writeUInt32BE(offset % 0x1_0000_0000, at + 4)
}
