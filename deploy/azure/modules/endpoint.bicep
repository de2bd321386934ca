// One private endpoint, with its name in the DNS zone beside it.

param name string
param location string
param subnet string
@description('The resource that is reached through it.')
param target string
@description('Which of its services: namespace, blob, registry, vault, amlworkspace ...')
param service string
param zones array
@description('The owner of the target has to approve it: whoever deploys this has no rights there.')
param byHand bool = false

var connection = {
  name: name
  properties: {
    privateLinkServiceId: target
    groupIds: [service]
  }
}

resource endpoint 'Microsoft.Network/privateEndpoints@2024-05-01' = {
  name: name
  location: location
  properties: {
    subnet: {
      id: subnet
    }
    privateLinkServiceConnections: byHand ? [] : [connection]
    manualPrivateLinkServiceConnections: byHand ? [connection] : []
  }
}

resource group 'Microsoft.Network/privateEndpoints/privateDnsZoneGroups@2024-05-01' = {
  parent: endpoint
  name: 'default'
  properties: {
    privateDnsZoneConfigs: [
      for zone in zones: {
        name: replace(zone, '.', '-')
        properties: {
          privateDnsZoneId: resourceId('Microsoft.Network/privateDnsZones', zone)
        }
      }
    ]
  }
}
