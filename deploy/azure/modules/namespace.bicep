// The Service Bus namespace and the queues that belong to no silo.

param name string
param location string
@description('Premium, and not to be reached from the internet.')
param isPrivate bool
@description('Keys for silos without an identity that Entra knows. Off, only identities get in.')
param keys bool
param queues array

resource bus 'Microsoft.ServiceBus/namespaces@2024-01-01' = {
  name: name
  location: location
  sku: {
    name: isPrivate ? 'Premium' : 'Standard'
    tier: isPrivate ? 'Premium' : 'Standard'
    capacity: isPrivate ? 1 : null
  }
  properties: {
    disableLocalAuth: !keys
    minimumTlsVersion: '1.2'
    publicNetworkAccess: isPrivate ? 'Disabled' : 'Enabled'
  }
}

module each 'queue.bicep' = [
  for queue in queues: {
    name: 'queue-${queue}'
    params: {
      namespace: bus.name
      name: queue
    }
  }
]

output id string = bus.id
output name string = bus.name
output host string = '${bus.name}.servicebus.windows.net'
