import { spawnSync } from 'node:child_process'
import { chmodSync, chownSync, mkdtempSync, readFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { account, removeAtExit } from './processes.ts'

/** Files in PEM. The key belongs to the account that servers run under. */
type Certificate = { readonly cert: string; readonly key: string }
interface Authority {
  readonly ca: string
  /** For one name: by default that of local servers. */
  certificate(name?: string): Certificate
}

/** The reason why there can be no certificates, or false. */
export const noCertificates: string | false = spawnSync('openssl', ['version'], {
  encoding: 'utf8',
}).stdout?.startsWith('OpenSSL 3')
  ? false
  : 'openssl 3 missing: apt-get install openssl'

/** An authority of our own, made by openssl, in a folder that goes with our process. */
export function authority(): Authority {
  const dir = mkdtempSync(join(tmpdir(), 'crossfade-certificates-'))
  removeAtExit(dir)
  chmodSync(dir, 0o755)
  let made = 0
  const make = (name: string, ...args: readonly string[]): Certificate => {
    const [cert, key] = [join(dir, `${made}.pem`), join(dir, `${made}.key`)]
    made++
    const base = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2']
    const to = ['-subj', `/CN=${name}`, '-keyout', key, '-out', cert]
    const { status, stderr } = spawnSync('openssl', [...base, ...to, ...args], { encoding: 'utf8' })
    if (status !== 0) throw new Error(`openssl: ${stderr}`)
    if (account.uid !== undefined && account.gid !== undefined) chownSync(key, account.uid, account.gid)
    return { cert, key }
  }
  const own = make('authority', '-addext', 'basicConstraints=critical,CA:TRUE')
  return {
    ca: own.cert,
    certificate: (name = 'IP:127.0.0.1') =>
      make('server', '-CA', own.cert, '-CAkey', own.key, '-addext', `subjectAltName=${name}`),
  }
}

/** PEM as one line of a Java properties file. */
export function inOneLine(path: string): string {
  return readFileSync(path, 'utf8').trim().replaceAll('\n', '\\n')
}
