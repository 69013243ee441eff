/** What the run loop does with an error: try again with backoff, wait for the operator's change and stop, stop for good, or report a defect of ours. */
export type Policy = 'retry' | 'operator' | 'stop' | 'bug'
export type ErrorCode =
  | 'USAGE'
  | 'CONFIG_INVALID'
  | 'CHECK_FAILED'
  | 'SERVER_UNREACHABLE'
  | 'NO_RIGHTS'
  | 'SERVER_BUSY'
  | 'DATABASE_MISSING'
  | 'TABLE_MISSING'
  | 'TABLE_CHANGED'
  | 'TABLE_REWRITTEN'
  | 'TARGET_SHAPE'
  | 'TARGET_DRIFTED'
  | 'ROW_REJECTED'
  | 'KEY_MISSING'
  | 'SOURCE_SETTING'
  | 'SLOT_LIMIT'
  | 'SLOT_IN_USE'
  | 'SLOT_LOST'
  | 'SNAPSHOT_BLOCKED'
  | 'SNAPSHOT_LOST'
  | 'SOURCE_DIVERGED'
  | 'PUBLICATION_CHANGED'
  | 'STREAM_MALFORMED'
  | 'LIMIT_EXCEEDED'
  | 'SPOOL_FULL'
  | 'LOG_GAP'
  | 'TOPIC_MISMATCH'
  | 'RECORD_TOO_LARGE'
  | 'LOG_DAMAGED'
  | 'LOG_IN_USE'
  | 'LOG_FULL'
  | 'FENCED'
  | 'LEASE_LOST'
  | 'UNSUPPORTED'
  | 'NOT_BEGUN'
  | 'NOT_RUNNING'
  | 'VERIFY_RUNNING'
  | 'INTERRUPTED'
  | 'BUG'
export type Facts = {
  /** What it is about: a table, a slot, a file with its line, a broker. */
  readonly object?: string
  /** The configuration's key it comes from; shown with file and line. */
  readonly key?: string
  readonly observed?: string
  readonly needed?: string
  /** What happens now because of it. */
  readonly effect?: string
  /** The operator's next step, ready to copy where it is a command. Defaults to the code's own. */
  readonly next?: string
  readonly cause?: unknown
  /** The single ones where several were found at once, such as every bad line of a file. */
  readonly all?: readonly Facts[]
}

export type Code = { readonly policy: Policy; readonly exit: number; readonly meaning: string; readonly next: string }
const operator = (meaning: string, next: string, exit = 1): Code => ({ policy: 'operator', exit, meaning, next })
const retry = (meaning: string, next: string, exit = 5): Code => ({ policy: 'retry', exit, meaning, next })
const stop = (meaning: string, next: string): Code => ({ policy: 'stop', exit: 1, meaning, next })

/** Every code there is. Codes are permanent: scripts and alerts match them. `docs/errors.md` is made from this table. */
export const codes: Readonly<Record<ErrorCode, Code>> = {
  USAGE: operator('The command line is not understood', 'See crossfade --help', 2),
  CONFIG_INVALID: operator('The configuration is not valid', 'Correct the file at the line shown', 2),
  CHECK_FAILED: operator('The preflight found blockers', 'Follow the remedies listed, then run crossfade check', 1),
  SERVER_UNREACHABLE: retry('A server does not answer', 'Check address, port, network and that the server runs'),
  NO_RIGHTS: operator('A server refuses the credentials or a right is missing', 'Grant what is named', 5),
  SERVER_BUSY: retry(
    'A server cannot take the work at the moment',
    'Nothing, unless it lasts: then look at the server',
  ),
  DATABASE_MISSING: operator('A database does not exist', 'Create it, or correct its name in the address'),
  TABLE_MISSING: operator('A table does not exist', 'Create it, or leave it out by tables.exclude'),
  TABLE_CHANGED: stop(
    'A table is not as it was recorded',
    'Run the statements named at the target, or undo the change at the source, then start again',
  ),
  TABLE_REWRITTEN: retry('A table was rewritten or truncated while it was copied', 'Nothing: its copy restarts', 1),
  TARGET_SHAPE: operator(
    'A table of the target has another shape than at the source',
    'Alter or drop it, or let crossfade create it',
  ),
  TARGET_DRIFTED: stop(
    'A row that must be there is not in the target',
    'Someone else writes to the target: find out who, then copy the table again',
  ),
  ROW_REJECTED: stop('The target rejects a change', 'Correct the target (constraint, type, trigger) and run again'),
  KEY_MISSING: operator(
    'A table has neither key nor full old rows',
    'Give it a primary key, or let the source log whole old rows, or exclude it',
  ),
  SOURCE_SETTING: operator(
    'A setting of the source does not allow change capture',
    'Change the setting; it may need a restart of the source',
  ),
  SLOT_LIMIT: operator('The source has no free replication slot or sender', 'Drop an unused slot, or raise the limit'),
  SLOT_IN_USE: operator(
    'Somebody else holds what keeps our place in the source',
    'Stop the other consumer, or choose another pipeline name',
  ),
  SLOT_LOST: stop('The source no longer has the changes we still need', 'Drop the pipeline state and copy again'),
  SNAPSHOT_BLOCKED: retry('Open transactions at the source keep a snapshot waiting', 'End the transactions named', 1),
  SNAPSHOT_LOST: retry('The snapshot of a copy is gone', 'Nothing: the rest is copied under a new one', 1),
  SOURCE_DIVERGED: stop(
    'The source is not the one that was recorded, or went back in time',
    'Decide which system is the truth; then start a new pipeline',
  ),
  PUBLICATION_CHANGED: stop(
    'The set of captured tables was changed by somebody else',
    'Restore it as named, or start a new pipeline',
  ),
  STREAM_MALFORMED: {
    policy: 'bug',
    exit: 1,
    meaning: 'The source sent bytes that cannot be understood',
    next: 'Please report this with the text above',
  },
  LIMIT_EXCEEDED: stop('A size limit was exceeded', 'Raise the limit named, if the machine allows it'),
  SPOOL_FULL: retry(
    'No space for transactions in progress',
    'Free disk space where the spool lies; the run goes on by itself',
    1,
  ),
  LOG_GAP: stop(
    'Records that are still needed are no longer in the change log',
    'Retention was too short or the topic was re-created: copy again',
  ),
  TOPIC_MISMATCH: operator(
    'A topic exists with other settings, or is not the one we made',
    'Delete or rename the topic, or change the pipeline name',
  ),
  RECORD_TOO_LARGE: operator(
    'One record is larger than the log accepts',
    'Raise log.maxMessageBytes and start again: the pipeline goes on from there',
  ),
  LOG_DAMAGED: stop(
    'What the change log holds cannot be read, or is not what was written to it',
    'Look at the broker’s disks; restore the log or copy again',
  ),
  LOG_FULL: retry('No space for the change log', 'Free disk space where the log lies; the run goes on by itself', 1),
  LOG_IN_USE: operator('Another process has the embedded log open', 'Stop the other process, or name brokers'),
  FENCED: retry('Another worker has taken over', 'Nothing: the successor goes on', 1),
  LEASE_LOST: retry(
    'A lease could not be renewed in time',
    'Nothing, unless it repeats: then look at the state store',
    1,
  ),
  NOT_BEGUN: operator('The pipeline has not begun: there is nothing to compare', 'Start it with crossfade run', 3),
  NOT_RUNNING: operator('No process runs the pipeline', 'Start it with crossfade run', 3),
  VERIFY_RUNNING: operator('Another process verifies or repairs this pipeline', 'Wait for it, or end it', 3),
  UNSUPPORTED: operator('This version cannot do that yet', 'See what works in the README'),
  INTERRUPTED: {
    policy: 'stop',
    exit: 130,
    meaning: 'Stopped by a signal',
    next: 'Run again: it carries on where it was',
  },
  BUG: {
    policy: 'bug',
    exit: 1,
    meaning: 'An error of crossfade itself',
    next: 'Please report this with the text above',
  },
}

/** The one error class. Never carries a row's values. */
export class Failure extends Error {
  override readonly name = 'Failure'
  readonly code: ErrorCode
  readonly facts: Facts
  constructor(code: ErrorCode, facts: Facts = {}) {
    const what = [facts.object, facts.observed].filter((part) => part !== undefined).join(': ')
    super(what === '' ? `${code}: ${codes[code].meaning}` : `${code}: ${codes[code].meaning}: ${what}`, {
      cause: facts.cause,
    })
    this.code = code
    this.facts = facts
  }
  get policy(): Policy {
    return codes[this.code].policy
  }
}

/** The only door for `unknown`: an error that is none of ours is a defect until a connector maps it. */
export function asFailure(error: unknown): Failure {
  if (error instanceof Failure) return error
  return new Failure('BUG', { observed: error instanceof Error ? error.message : String(error), cause: error })
}
