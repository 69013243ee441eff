/** `${env:NAME}`, `${env:NAME:-default}` (the default also where NAME is empty) and `${file:PATH}`; `$${` stands for `${`. */
const reference = /\$\$\{|\$\{([^}]*)\}?/g

type Lookup = {
  readonly env: Readonly<Record<string, string | undefined>>
  /** Throws where there is no such file. */
  readonly readFile: (path: string) => string
}
type Resolved = {
  readonly text: string
  /** Whether any of it came from outside the file. */
  readonly foreign: boolean
  readonly problems: readonly { readonly observed: string; readonly next: string }[]
}

/** Replaces the references in one value. What they stand for is text: it is never read as YAML, nor looked through for references. */
export function resolveReferences(source: string, { env, readFile }: Lookup): Resolved {
  const problems: { observed: string; next: string }[] = []
  let foreign = false
  const text = source.replace(reference, (found: string, inside: string | undefined) => {
    if (found === '$${') return '${'
    foreign = true
    const [, kind, rest = ''] = /^(env|file):(.*)$/s.exec(inside ?? '') ?? []
    if (kind === undefined || !found.endsWith('}')) {
      problems.push({
        observed: `${found} is no reference`,
        next: 'Write ${env:NAME}, ${env:NAME:-default} or ${file:PATH}; $${ stands for ${',
      })
      return ''
    }
    if (kind === 'file') {
      try {
        return readFile(rest).replace(/\r?\n$/, '')
      } catch (error) {
        const why = error instanceof Error && 'code' in error ? String(error.code) : 'not readable'
        problems.push({ observed: `the file ${rest} cannot be read (${why})`, next: `Create it, or change the path` })
        return ''
      }
    }
    const [, name = '', fallback] = /^(.*?)(?::-(.*))?$/s.exec(rest) ?? []
    const value = env[name]
    if (value !== undefined && (value !== '' || fallback === undefined)) return value
    if (fallback !== undefined) return fallback
    problems.push({
      observed: `the environment variable ${name} is not set`,
      next: `Set it: export ${name}=…, or give a default: \${env:${name}:-default}`,
    })
    return ''
  })
  return { text, foreign, problems }
}

const secretKey = /pass(word|phrase)?$|secret|token|credential|private|(^|_|api)key$/i

/** Whether a key's value is never shown. */
export function isSecretKey(key: string): boolean {
  return secretKey.test(key)
}

/** Passwords in addresses become `***`, whatever the text around them. */
export function maskUrls(text: string): string {
  return text
    .replace(/([a-z][a-z0-9+.-]*:\/\/[^\s:/?#@]*:)\S*(?=@)/gi, '$1***')
    .replace(/([?&](?:[a-z_]*password|[a-z_]*secret|[a-z_]*token)=)[^\s&#]*/gi, '$1***')
}

/** Secrets of a configuration: passwords of its addresses, in both spellings, and values of keys that name a secret. Short ones are left out: they
 *  would blank ordinary words, and `maskUrls` finds those of addresses anyway. */
export function secretsOf(value: unknown, key = ''): readonly string[] {
  if (Array.isArray(value)) return value.flatMap((item) => secretsOf(item, key))
  if (typeof value === 'object' && value !== null)
    return Object.entries(value).flatMap(([name, inner]) => secretsOf(inner, name))
  if (typeof value !== 'string') return []
  const found = isSecretKey(key) ? [value] : []
  const password = URL.canParse(value) ? new URL(value).password : ''
  if (password !== '') {
    found.push(password)
    try {
      found.push(decodeURIComponent(password))
    } catch {
      // Its own spelling is enough.
    }
  }
  return found.filter((secret) => secret.length >= 4)
}

/** A function that shows none of `secrets`, nor any address's password. */
export function masker(secrets: readonly string[]): (text: string) => string {
  const longestFirst = [...new Set(secrets)].sort((a, b) => b.length - a.length)
  return (text) => longestFirst.reduce((masked, secret) => masked.replaceAll(secret, '***'), maskUrls(text))
}

/** A configuration for people and for `--json`: the same, with `***` for each secret. */
export function withoutSecrets(value: unknown, key = ''): unknown {
  if (Array.isArray(value)) return value.map((item) => withoutSecrets(item, key))
  if (typeof value === 'object' && value !== null)
    return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, withoutSecrets(inner, name)]))
  if (typeof value !== 'string') return value
  return isSecretKey(key) ? '***' : maskUrls(value)
}
