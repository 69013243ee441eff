/** Consistent hash: which of `partitions` partitions a key belongs to. Pure and the same for ever: where a key lies is stored nowhere else. */
export interface HashRing {
  /** 0-based, of the key in bytes[start, end). */
  partition(bytes: Uint8Array, start: number, end: number): number
}

/** Points of each partition on the ring: shares differ by some 4 %. Changing it moves keys. */
const pointsPerPartition = 512
const rings = new Map<number, HashRing>()

/** One more partition moves about 1/(partitions + 1) of the keys, all of them to the new one. */
export function hashRing(partitions: number): HashRing {
  if (!Number.isInteger(partitions) || partitions < 1 || partitions > 1 << 16)
    throw new RangeError(`${partitions} partitions`)
  let ring = rings.get(partitions)
  if (ring === undefined) {
    ring = partitions === 1 ? { partition: () => 0 } : build(partitions)
    rings.set(partitions, ring)
  }
  return ring
}

function build(partitions: number): HashRing {
  const count = partitions * pointsPerPartition
  // Point and partition in one double (32 and 17 bits), so that one native sort orders both.
  const sorted = new Float64Array(count)
  const scratch = new Uint8Array(8)
  const view = new DataView(scratch.buffer)
  for (let partition = 0; partition < partitions; partition++) {
    view.setUint32(0, partition)
    for (let i = 0; i < pointsPerPartition; i++) {
      view.setUint32(4, i)
      sorted[partition * pointsPerPartition + i] = hash32(scratch, 0, 8) * 0x20000 + partition
    }
  }
  sorted.sort()
  const points = new Uint32Array(count)
  const owners = new Uint16Array(count)
  sorted.forEach((value, i) => {
    points[i] = Math.floor(value / 0x20000)
    owners[i] = value % 0x20000
  })
  // For each value of a hash's upper bits the first point at or after it: a key is a look-up and a step or two.
  const bits = Math.min(20, Math.ceil(Math.log2(count)) + 1)
  const first = new Uint32Array((1 << bits) + 1)
  for (let slot = 0, i = 0; slot < 1 << bits; slot++) {
    const from = slot * 2 ** (32 - bits)
    while (i < count && (points[i] ?? 0) < from) i++
    first[slot] = i
  }
  first[1 << bits] = count
  return {
    partition(bytes, start, end) {
      const hash = hash32(bytes, start, end)
      let i = first[hash >>> (32 - bits)] ?? 0
      while (i < count && (points[i] ?? 0) < hash) i++
      return owners[i === count ? 0 : i] ?? 0
    },
  }
}

/** MurmurHash3 (x86, 32 bits, seed 0; Austin Appleby, public domain algorithm) of bytes[start, end). */
export function hash32(bytes: Uint8Array, start: number, end: number): number {
  let hash = 0
  let at = start
  for (; at + 4 <= end; at += 4) {
    const word =
      (bytes[at] ?? 0) | ((bytes[at + 1] ?? 0) << 8) | ((bytes[at + 2] ?? 0) << 16) | ((bytes[at + 3] ?? 0) << 24)
    hash ^= scramble(word)
    hash = (hash << 13) | (hash >>> 19)
    hash = (Math.imul(hash, 5) + 0xe6546b64) | 0
  }
  if (at < end) {
    let word = bytes[at] ?? 0
    if (at + 1 < end) word |= (bytes[at + 1] ?? 0) << 8
    if (at + 2 < end) word |= (bytes[at + 2] ?? 0) << 16
    hash ^= scramble(word)
  }
  hash ^= end - start
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b)
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35)
  return (hash ^ (hash >>> 16)) >>> 0
}

function scramble(word: number): number {
  const mixed = Math.imul(word, 0xcc9e2d51)
  return Math.imul((mixed << 15) | (mixed >>> 17), 0x1b873593)
}
