import type { Epoch } from '../model.ts'
/** The right to do one thing. All work under it takes `signal`, which aborts before anyone else can hold it; `epoch` goes into every write. */
export interface Lease extends AsyncDisposable {
  readonly name: string
  readonly epoch: Epoch
  readonly signal: AbortSignal
}
/** A foreign lease is free once its revision stood still for `ttl` on our own monotonic clock: clocks are never compared. */
export interface Leases {
  acquire(name: string, ttl: number, signal: AbortSignal): Promise<Lease>
  tryAcquire(name: string, ttl: number, signal: AbortSignal): Promise<Lease | undefined>
}
