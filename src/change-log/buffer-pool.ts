/** Buffers by powers of two, each on memory of its own; what comes back is kept up to a bound, so that memory does not grow with the number of partitions. */
const most = 16 * 1024 * 1024
const free: Buffer[][] = []
let kept = 0

/** At least `size` bytes, unwritten. */
export function lendBuffer(size: number): Buffer {
  const power = Math.max(12, 32 - Math.clz32(size - 1))
  const buffer = free[power]?.pop()
  if (buffer === undefined) return Buffer.allocUnsafeSlow(2 ** power)
  kept -= buffer.length
  return buffer
}

/** Only whole buffers from `lendBuffer`, once, and no longer used. */
export function returnBuffer(buffer: Buffer): void {
  if (kept + buffer.length > most) return
  kept += buffer.length
  const power = 31 - Math.clz32(buffer.length)
  const same = (free[power] ??= [])
  same.push(buffer)
}
