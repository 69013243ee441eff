/** One growing byte buffer, written at `at` and used again. */
export class Output {
  bytes: Buffer
  at = 0
  constructor(capacity: number) {
    this.bytes = Buffer.allocUnsafeSlow(capacity)
  }
  /** Makes room for `more` bytes from `at` on; `bytes` may be another buffer afterwards. */
  reserve(more: number): void {
    const needed = this.at + more
    if (needed <= this.bytes.length) return
    const larger = Buffer.allocUnsafeSlow(Math.max(needed, this.bytes.length * 2))
    this.bytes.copy(larger, 0, 0, this.at)
    this.bytes = larger
  }
}
