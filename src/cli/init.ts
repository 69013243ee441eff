/** The file that `crossfade init` writes: every key with its default or an example, and what it is for. `type`: the connector to start from. */
export function configTemplate(name: string, type: string, schemaPath: string): string {
  return `# yaml-language-server: $schema=${schemaPath}
# A crossfade pipeline. \${env:NAME}, \${env:NAME:-default} and \${file:PATH} may stand in any value; paths count from this file's folder.

# Part of the names of topics, slots and publications: [a-z][a-z0-9_]{0,30}. Never change it once the pipeline has run.
name: ${name}

# full: copy, then end. incremental: changes only, the target already holds the rest. hybrid: copy, then changes for as long as it runs.
mode: hybrid
# startAt: "<position>"        # incremental only: the place of a slot made by hand as of which the target holds the data; default: a slot made now

# Keep passwords out of this file.
source: { type: ${type}, url: "\${env:SOURCE_URL}" }
target: { type: ${type}, url: "\${env:TARGET_URL}" }
# state: { type: ${type}, url: "\${env:STATE_URL}" }    # leases, tasks and journal; default: in the target

# Patterns schema.table with * and ?; "*.*" is every user table. What is excluded stays out.
tables: { include: ["*.*"], exclude: [] }

# When a table's definition changes at the source. stop: end with the statements for the target, go on once they were run.
# apply: make the change at the target too where it can be proved right.
ddl: stop

# The change log between the databases. embedded: files on this machine, no broker needed, one process.
log: { type: embedded, dir: .crossfade/log, partitions: 8 }
# kafka: for several readers, other consumers, or a machine that may be lost. replication: 3 wherever there are three brokers.
# log: { type: kafka, brokers: ["127.0.0.1:9092"], partitions: 8, replication: 3 }

# The copy. schema: who creates the tables at the target: auto | dump | tables | none
snapshot: { parallel: 4, chunkRows: 100000, schema: auto }

# Writing to the target: connections, and the most changes and bytes of one transaction.
apply: { lanes: 4, batchRows: 2000, batchBytes: 4MiB }

# Whether the running pipeline verifies itself: off | continuous. rate: rows a second that it reads at the source at most.
verify: { schedule: off, rate: 5000 }   # maxLoad: 50 rests while more sessions of others are at work there
`
}

/** A name the configuration accepts, from a folder's. */
export function nameFrom(folder: string): string {
  const name = folder
    .toLowerCase()
    .replace(/[^a-z0-9_]+/g, '_')
    .replace(/^[^a-z]+|_+$/g, '')
    .slice(0, 31)
  return name === '' ? 'pipeline' : name
}
