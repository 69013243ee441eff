import { memoryStore } from '../../../src/coordinate/state-store.ts'
import { leaseConformance } from '../../conformance/lease.ts'
import { stateStoreConformance } from '../../conformance/state-store.ts'

const store = memoryStore()
stateStoreConformance('memory', async () => store)
leaseConformance('memory', async () => store)
