import kafkajs from 'kafkajs'
import { openKafkaLog } from '../../../src/change-log/kafka-log.ts'
import { silent } from '../../../src/logger.ts'
import { changeLogConformance } from '../../conformance/change-log.ts'
import { kafka, needs } from '../../support/servers.ts'

const never = new AbortController().signal
let topics = 0
const skip = needs('kafka').skip
const shared = skip ? { brokers: [], prefix: '' } : await kafka()

changeLogConformance(
  'Kafka',
  {
    open: () => openKafkaLog({ brokers: shared.brokers, clientId: 'test', replication: 1 }, silent, never),
    topic: () => `${shared.prefix}topic-${topics++}`,
    async truncate(_, { topic, partition }, offset) {
      const admin = new kafkajs.Kafka({ brokers: [...shared.brokers], logLevel: kafkajs.logLevel.NOTHING }).admin()
      await admin.connect()
      try {
        await admin.fetchTopicOffsets(topic)
        await admin.deleteTopicRecords({ topic, partitions: [{ partition, offset: String(offset) }] })
      } finally {
        await admin.disconnect()
      }
    },
  },
  { skip },
)
