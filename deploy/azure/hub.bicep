// The exchange between silos, and the orchestrator: one resource group. Silos come in with enrol.bicep.
//
//   az deployment group create -g HUB -f deploy/azure/hub.bicep -p deploy/azure/open.json ...

targetScope = 'resourceGroup'

@description('`open`: reached from anywhere with an identity, for trying out. `private`: private endpoints only.')
@allowed(['open', 'private'])
param profile string
@description('3 to 12 small letters and digits; names what has no name of its own.')
@minLength(3)
@maxLength(12)
param name string
param location string = resourceGroup().location
@description('The silos that are enrolled, or are about to be.')
@minLength(1)
param silos array
@description('Object ids of who operates: a group of people.')
param operators array
@allowed(['Group', 'User', 'ServicePrincipal'])
param operatorType string = 'Group'
@description('Who is told when something is wrong.')
param email string
@description('The image, below the registry that this makes; empty: everything but the orchestrator, for the first time.')
param image string = ''
@description('Any silo that comes with a key, since its tenant has no identity that this one knows.')
param keys bool = false
@description('Models over 32 MiB. See modules/roles.bicep.')
param largeModels bool = false
@description('0: no orchestrator runs while no message waits.')
param minReplicas int = 0
param maxReplicas int = 3
param softDeleteDays int = 7
@description('What the orchestrator keeps of runs, and how long: {updates, models, days}, as in its settings.')
param retention object = {}
@description('Of the virtual network of the private profile.')
param addressPrefix string = '10.20.0.0/24'

var isPrivate = profile == 'private'
var unique = '${name}${uniqueString(resourceGroup().id)}'
var rights = loadJsonContent('rights.json')
var listens = concat(['experiments', 'work'], map(silos, silo => 'from-${silo}'))
var people = flatten(map(operators, id => map(
  filter(rights.hub.grants, grant => grant.who == 'operator'),
  grant => { id: id, grant: grant }
)))
var blobZone = 'privatelink.blob.${environment().suffixes.storage}'

resource orchestrator 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: '${name}-orchestrator'
  location: location
}

module bus 'modules/namespace.bicep' = {
  name: 'bus'
  params: {
    name: '${unique}-bus'
    location: location
    isPrivate: isPrivate
    keys: keys
    queues: rights.hub.queues
  }
}

module store 'modules/store.bicep' = {
  name: 'store'
  params: {
    name: take(unique, 24)
    location: location
    isPrivate: isPrivate
    containers: rights.hub.containers
    softDeleteDays: softDeleteDays
  }
}

module roles 'modules/roles.bicep' = {
  name: 'roles'
  params: {
    largeModels: largeModels
    suffix: unique
  }
}

module roleIds 'modules/role-ids.bicep' = {
  name: 'role-ids'
  dependsOn: [roles]
}

module orchestrators 'modules/grant.bicep' = [
  for grant in filter(rights.hub.grants, grant => grant.who == 'orchestrator'): {
    name: 'orchestrator-${grant.role}-${grant.place}'
    params: {
      on: grant.on
      place: grant.place
      namespace: bus.outputs.name
      storageAccount: store.outputs.name
      principalId: orchestrator.properties.principalId
      principalType: 'ServicePrincipal'
      role: roleIds.outputs.ids[grant.role]
    }
  }
]

module operatorGrants 'modules/grant.bicep' = [
  for (row, i) in people: {
    name: 'operator-${i}-${row.grant.role}-${row.grant.place}'
    params: {
      on: row.grant.on
      place: row.grant.place
      namespace: bus.outputs.name
      storageAccount: store.outputs.name
      principalId: row.id
      principalType: operatorType
      role: roleIds.outputs.ids[row.grant.role]
    }
  }
]

module registry 'modules/registry.bicep' = {
  name: 'registry'
  params: {
    name: take('${unique}images', 50)
    location: location
    isPrivate: isPrivate
    premium: isPrivate
    pullers: [orchestrator.properties.principalId]
  }
}

resource logs 'Microsoft.OperationalInsights/workspaces@2023-09-01' = {
  name: '${name}-logs'
  location: location
  properties: {
    sku: {
      name: 'PerGB2018'
    }
    retentionInDays: 30
    features: {
      disableLocalAuth: true
    }
  }
}

module busLogs 'modules/bus-logs.bicep' = {
  name: 'bus-logs'
  params: {
    namespace: bus.outputs.name
    storageAccount: store.outputs.name
    logs: logs.name
  }
}

module network 'modules/network.bicep' = if (isPrivate) {
  name: 'network'
  params: {
    name: '${name}-network'
    location: location
    addressPrefix: addressPrefix
    zones: ['privatelink.servicebus.windows.net', blobZone, 'privatelink.azurecr.io']
  }
}

module busEndpoint 'modules/endpoint.bicep' = if (isPrivate) {
  name: 'bus-endpoint'
  params: {
    name: '${name}-bus'
    location: location
    subnet: network.outputs.endpoints
    target: bus.outputs.id
    service: 'namespace'
    zones: ['privatelink.servicebus.windows.net']
  }
}

module storeEndpoint 'modules/endpoint.bicep' = if (isPrivate) {
  name: 'store-endpoint'
  params: {
    name: '${name}-store'
    location: location
    subnet: network.outputs.endpoints
    target: store.outputs.id
    service: 'blob'
    zones: [blobZone]
  }
}

module registryEndpoint 'modules/endpoint.bicep' = if (isPrivate) {
  name: 'registry-endpoint'
  params: {
    name: '${name}-registry'
    location: location
    subnet: network.outputs.endpoints
    target: registry.outputs.id
    service: 'registry'
    zones: ['privatelink.azurecr.io']
  }
}

module apps 'modules/apps.bicep' = {
  name: 'apps'
  params: {
    name: '${name}-apps'
    location: location
    logs: logs.name
    subnet: isPrivate ? network.outputs.apps : ''
  }
}

module app 'modules/app.bicep' = if (!empty(image)) {
  name: 'orchestrator'
  dependsOn: [orchestrators]
  params: {
    name: 'orchestrator'
    location: location
    environmentId: apps.outputs.id
    image: '${registry.outputs.server}/${image}'
    registry: registry.outputs.server
    identity: orchestrator.id
    clientId: orchestrator.properties.clientId
    arguments: ['--config', '/etc/silobus/orchestrator.yaml']
    settingsFile: 'orchestrator.yaml'
    settings: string({
      bus: {
        namespace: bus.outputs.host
        credential: 'managed-identity'
      }
      store: {
        account_url: store.outputs.url
        credential: 'managed-identity'
      }
      silos: silos
      scratch: '/tmp/scratch'
      retention: retention
      health: {
        port: 8080
        host: '0.0.0.0'
      }
    })
    size: {
      cpu: '1.0'
      memory: '2Gi'
      workloadProfile: 'Consumption'
    }
    minReplicas: minReplicas
    maxReplicas: maxReplicas
    queues: listens
    namespace: bus.outputs.name
  }
}

module alerts 'modules/alerts.bicep' = {
  name: 'alerts'
  params: {
    prefix: name
    busId: bus.outputs.id
    silos: silos
    email: email
  }
}

output namespace string = bus.outputs.name
output bus string = bus.outputs.host
output storageAccount string = store.outputs.name
output store string = store.outputs.url
output registry string = registry.outputs.server
output orchestrator string = orchestrator.properties.principalId
output logs string = logs.properties.customerId
