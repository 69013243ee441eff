/** Every place where a test may kill the process. */
export type Failpoint =
  | 'capture.before-append'
  | 'capture.between-append-and-ack'
  | 'capture.after-ack'
  | 'apply.before-commit'
  | 'apply.between-commit-and-answer'
  | 'copy.before-chunk'
  | 'copy.in-chunk'
  | 'copy.after-chunk'
  | 'copy.between-hold-and-snapshot'
  | 'copy.before-live'

const [name, countdown = '1'] = (process.env['CROSSFADE_FAILPOINT'] ?? '').split(':')
let left = Number(countdown)

/** Kills this process with SIGKILL at the n-th passing of the point that CROSSFADE_FAILPOINT=name:n names; otherwise a string comparison. */
export function failpoint(here: Failpoint): void {
  if (here === name && --left === 0) process.kill(process.pid, 'SIGKILL')
}
