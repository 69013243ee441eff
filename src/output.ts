/** One growing byte buffer, written at `at` and used again. */
export class Output {
  bytes: Buffer
  at = 0
  readonly #capacity: number
  constructor(capacity: number) {
    this.#capacity = capacity
    this.bytes = Buffer.allocUnsafeSlow(capacity)
  }
  /** Makes room for `more` bytes from `at` on; `bytes` may be another buffer afterwards. */
  reserve(more: number): void {
    const needed = this.at + more
    if (needed <= this.bytes.length) return
    // Doubled while it is small; a rare giant takes little more than it needs.
    const larger = Buffer.allocUnsafeSlow(
      needed > largestKept ? needed + (needed >>> 3) : Math.max(needed, this.bytes.length * 2),
    )
    this.bytes.copy(larger, 0, 0, this.at)
    this.bytes = larger
  }
  /** Begins anew. Memory that a rare giant took is given back: what was lent of it stays as it is. */
  clear(): void {
    this.at = 0
    if (this.bytes.length > largestKept) this.bytes = Buffer.allocUnsafeSlow(this.#capacity)
  }
}
const largestKept = 8 * 1024 * 1024
