/** Avro schemas of control records; the same text stands in schemas/control.avsc. Times are microseconds since 1970; a table's schema is the Avro
 *  text of its envelope; a schema change names it as `schema`, in one JSON text with its `changes`. */
const partition = {
  type: 'record',
  name: 'Partition',
  fields: [
    { name: 'topic', type: 'string' },
    { name: 'partition', type: 'int' },
  ],
}
const table = {
  type: 'record',
  name: 'Table',
  fields: [
    { name: 'schema', type: 'string' },
    { name: 'name', type: 'string' },
  ],
}
const end = {
  type: 'record',
  name: 'End',
  fields: [
    { name: 'topic', type: 'string' },
    { name: 'partition', type: 'int' },
    { name: 'offset', type: 'long' },
  ],
}
const truncate = {
  type: 'record',
  name: 'Truncate',
  fields: [
    { name: 'tables', type: { type: 'array', items: table } },
    { name: 'cascade', type: 'boolean' },
    { name: 'restartCounters', type: 'boolean' },
  ],
}
const schemaChange = { type: 'record', name: 'SchemaChange', fields: [{ name: 'schema', type: 'string' }] }
const rekey = {
  type: 'record',
  name: 'Rekey',
  fields: [
    { name: 'schema', type: 'string' },
    { name: 'oldKey', type: 'bytes' },
    { name: 'newImage', type: 'bytes' },
  ],
}
const repartition = {
  type: 'record',
  name: 'Repartition',
  fields: [
    { name: 'topic', type: 'string' },
    { name: 'partitions', type: 'int' },
  ],
}
const watermark = {
  type: 'record',
  name: 'Watermark',
  fields: [
    { name: 'position', type: 'string' },
    { name: 'published', type: 'string' },
    { name: 'committed_us', type: 'long' },
    { name: 'full', type: 'boolean' },
    { name: 'ends', type: { type: 'array', items: end } },
  ],
}
const barrier = {
  type: 'record',
  name: 'Barrier',
  fields: [
    { name: 'position', type: 'string' },
    { name: 'seq', type: 'long' },
    { name: 'committed_us', type: 'long' },
    { name: 'partitions', type: { type: 'array', items: partition } },
    { name: 'effect', type: [truncate, schemaChange, rekey, repartition] },
  ],
}
const epochRecord = { type: 'record', name: 'Epoch', fields: [] }

export const controlSchema: object = {
  type: 'record',
  name: 'Control',
  namespace: 'crossfade',
  fields: [
    { name: 'epoch', type: 'long' },
    { name: 'body', type: [watermark, barrier, epochRecord] },
  ],
}

/** Keys differ from record to record, so that a compacted topic keeps all of them. */
export const controlKeySchema: object = {
  type: 'record',
  name: 'ControlKey',
  namespace: 'crossfade',
  fields: [
    { name: 'kind', type: 'string' },
    { name: 'epoch', type: 'long' },
    { name: 'position', type: 'string' },
    { name: 'seq', type: 'long' },
  ],
}
