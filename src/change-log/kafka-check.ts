import kafkajs from 'kafkajs'
import type { Finding } from '../connector.ts'
import { kafkaOf, type KafkaAddress } from './kafka-client.ts'
import { abortable, type KafkaCluster } from './kafka-cluster.ts'

const requestLimit = 'socket.request.max.bytes'
/** Of a request beside the one batch that fills it. */
const requestMargin = 64 * 1024

/** Whether each broker takes a request with a batch of `messageBytes`: one that does not closes the connection without a word. The topics' own limit is
 *  set when they are opened. */
export async function checkBrokers(
  cluster: KafkaCluster,
  address: KafkaAddress,
  messageBytes: number,
  signal: AbortSignal,
): Promise<readonly Finding[]> {
  const needed = messageBytes + requestMargin
  const { brokers } = await cluster.refresh([], signal)
  const admin = kafkaOf(address).admin()
  try {
    await abortable(admin.connect(), signal)
    const { resources } = await abortable(
      admin.describeConfigs({
        includeSynonyms: false,
        resources: brokers.map(({ id }) => ({
          type: kafkajs.ConfigResourceTypes.BROKER,
          name: String(id),
          configNames: [requestLimit],
        })),
      }),
      signal,
    )
    const limits = resources.map(({ resourceName, configEntries }) => ({
      broker: resourceName,
      bytes: Number(configEntries.find(({ configName }) => configName === requestLimit)?.configValue ?? NaN),
    }))
    return [finding(limits, messageBytes, needed)]
  } catch (error) {
    signal.throwIfAborted()
    const observed = `the brokers do not tell their ${requestLimit}: ${error instanceof Error ? error.message : String(error)}`
    return [{ id: 'log.maxMessageBytes', level: 'unknown', observed, needed: `at least ${needed} on each broker` }]
  } finally {
    admin.disconnect().catch(() => {})
  }
}

function finding(
  limits: readonly { readonly broker: string; readonly bytes: number }[],
  messageBytes: number,
  least: number,
): Finding {
  const id = 'log.maxMessageBytes'
  const needed = `at least ${least} on each broker, as log.maxMessageBytes is ${messageBytes}`
  const unknown = limits.find(({ bytes }) => Number.isNaN(bytes))
  if (limits.length === 0 || unknown !== undefined)
    return { id, level: 'unknown', observed: `no broker tells its ${requestLimit}`, needed }
  const small = limits.filter(({ bytes }) => bytes < least)
  const lowest = Math.min(...limits.map(({ bytes }) => bytes))
  if (small.length === 0) return { id, level: 'ok', observed: `${requestLimit} is ${lowest} or more`, needed }
  return {
    id,
    level: 'blocker',
    observed: `${requestLimit} is ${lowest} on ${small.length === 1 ? 'broker' : 'brokers'} ${small.map(({ broker }) => broker).join(', ')}`,
    needed,
    remedy: `Set ${requestLimit}=${least} in the brokers’ properties and restart them, or lower log.maxMessageBytes`,
  }
}
