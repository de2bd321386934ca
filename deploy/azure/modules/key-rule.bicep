// A shared access rule on one queue, for a silo of another tenant.

param namespace string
param queue string
param name string
@allowed(['sender', 'receiver'])
param role string

resource bus 'Microsoft.ServiceBus/namespaces@2024-01-01' existing = {
  name: namespace
}

resource place 'Microsoft.ServiceBus/namespaces/queues@2024-01-01' existing = {
  parent: bus
  name: queue
}

resource rule 'Microsoft.ServiceBus/namespaces/queues/authorizationRules@2024-01-01' = {
  parent: place
  name: name
  properties: {
    rights: [role == 'sender' ? 'Send' : 'Listen']
  }
}
