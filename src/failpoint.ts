/** Every place where a test may kill or stop the process. */
export type Failpoint =
  // The lease and the state store.
  | 'pipeline.after-lease'
  | 'store.before-write'
  | 'store.after-write'
  // Setting up, in its order.
  | 'setup.after-tables'
  | 'setup.between-topics-and-ids'
  | 'setup.after-topics'
  | 'own-tables.before-commit'
  | 'setup.after-own-tables'
  | 'setup.after-style'
  | 'schema.before-tables'
  | 'schema.after-tables'
  | 'setup.after-schema'
  | 'hold.before-commit'
  | 'setup.after-hold'
  | 'retain.after-intent'
  | 'retain.between-publication-and-slot'
  | 'retain.between-slot-and-snapshot'
  | 'retain.between-snapshot-and-record'
  | 'retain.after-record'
  | 'setup.between-retain-and-begun'
  | 'setup.after-begun'
  // A round of copying.
  | 'copy.between-hold-and-snapshot'
  | 'copy.between-snapshot-and-hold'
  | 'copy.before-chunk'
  | 'load.after-begin'
  | 'copy.in-chunk'
  | 'load.before-mark'
  | 'load.before-commit'
  | 'copy.after-chunk'
  | 'copy.before-complete'
  | 'schema.before-rest'
  | 'schema.after-rest'
  | 'copy.between-schema-and-counters'
  | 'copy.before-live'
  | 'copy.after-live'
  | 'capture.before-opening'
  | 'capture.in-opening'
  | 'capture.before-append'
  | 'capture.between-append-and-ack'
  | 'capture.after-ack'
  | 'claim.before-commit'
  | 'apply.after-claim'
  | 'apply.before-commit'
  | 'apply.between-commit-and-answer'
  // Barriers.
  | 'apply.before-arrival'
  | 'barrier.after-arrival'
  | 'barrier.before-effect'
  | 'barrier.between-effect-and-done'
  | 'barrier.between-done-and-checkpoint'
  | 'barrier.before-commit'
  | 'apply.after-arrival'
  // The log.
  | 'log.before-lock'
  | 'log.after-lock'
  | 'log.before-topic'
  | 'log.after-topic'
  | 'log.before-topics'
  | 'log.after-topics'
  | 'log.before-header'
  | 'log.between-header-and-sync'
  | 'log.between-segment-and-name'
  | 'log.after-segment'
  | 'log.between-write-and-sync'
  | 'log.between-sync-and-answer'
  // The end of a `full` copy.
  | 'full.before-complete'
  | 'full.between-complete-and-release'
  | 'release.between-slot-and-publication'
  | 'release.between-publication-and-record'
  | 'full.between-release-and-record'
  // Changes of tables.
  | 'ddl.before-record'
  | 'ddl.after-record'

const [name, countdown = '1', then = 'kill'] = (process.env['CROSSFADE_FAILPOINT'] ?? '').split(':')
let left = Number(countdown)

/** Kills this process with SIGKILL at the n-th passing of the point that CROSSFADE_FAILPOINT=name:n names; otherwise a string comparison. `name:n:stop`
 *  stops it there with SIGSTOP: at SIGCONT it goes on with its next step, before it has looked at any clock. */
export function failpoint(here: Failpoint): void {
  if (here !== name || --left !== 0) return
  process.kill(process.pid, then === 'stop' ? 'SIGSTOP' : 'SIGKILL')
  // Another thread may have taken the signal, and this one have some moments left.
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 100)
}
