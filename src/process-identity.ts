import { readFileSync, readlinkSync } from 'node:fs'
import { hostname } from 'node:os'

/** Names this process for ever: `host/pid` for people, then what tells it from every other of that number. */
export function thisProcess(): string {
  return [`${hostname()}/${process.pid}`, startOf(process.pid), ...machine()].join(' ')
}

/** True only if the process of this name is certainly gone: it ran on this boot of this machine, where we could see it (containers of one host may
 *  share a host name and number their processes each on their own). */
export function hasEnded(name: string): boolean {
  const [who = '', start, ...where] = name.split(' ')
  const slash = who.lastIndexOf('/')
  if (start === undefined || who.slice(0, slash) !== hostname()) return false
  if (where.join(' ') !== machine().join(' ')) return false
  return startOf(Number(who.slice(slash + 1))) !== start
}

/** For people. */
export function hostAndPid(name: string): string {
  return name.split(' ')[0] ?? name
}

/** Boot, and the space in which process ids are counted. */
function machine(): readonly string[] {
  if (process.platform !== 'linux') return [process.platform]
  return [readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim(), readlinkSync('/proc/self/ns/pid')]
}

/** When the process began, so that a reused id does not count; 'none' if there is none. */
function startOf(pid: number): string {
  if (process.platform === 'linux') {
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
      const [state = '', , , , , , , , , , , , , , , , , , , start = ''] = stat
        .slice(stat.lastIndexOf(')') + 2)
        .split(' ')
      // A zombie in the system's sense holds nothing any more.
      return state === 'Z' || state === 'X' ? 'none' : start
    } catch {
      return 'none'
    }
  }
  try {
    process.kill(pid, 0)
    return 'alive'
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EPERM' ? 'alive' : 'none'
  }
}
