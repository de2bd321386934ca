// One queue. What the local federation uses (orchestrator/cli/folder.py) and this agree; a test compares them.

@description('The namespace it is in.')
param namespace string
param name string
@description('Whether a message that nobody took in time is set aside for a person, or is simply over.')
param keepExpired bool = true
@description('The longest that a message may wait: longer than any deadline. Announcements carry a time of their own, their deadline.')
param timeToLive string = 'P31D'

resource bus 'Microsoft.ServiceBus/namespaces@2024-01-01' existing = {
  name: namespace
}

resource queue 'Microsoft.ServiceBus/namespaces/queues@2024-01-01' = {
  parent: bus
  name: name
  properties: {
    lockDuration: 'PT30S' // a dead process is noticed after this; the living renew their locks
    maxDeliveryCount: 10
    defaultMessageTimeToLive: timeToLive
    deadLetteringOnMessageExpiration: keepExpired
    requiresDuplicateDetection: false // everything is correct without it
    requiresSession: false
    enablePartitioning: false
    enableBatchedOperations: true
    maxSizeInMegabytes: 1024 // messages are small: weights travel as blobs
  }
}
