// One silo, in a resource group of its owner's: an identity, an agent, and AzureML where that trains.
//
//   az deployment group create -g SILO -f deploy/azure/silo.bicep -p profile=open silo=north ...

targetScope = 'resourceGroup'

@allowed(['open', 'private'])
param profile string
@description('Its name in the federation.')
@maxLength(40)
param silo string
param location string = resourceGroup().location
@description('{subscription, resourceGroup, namespace, storageAccount, orchestrator, operators, operatorType} of the hub.')
param hub object
@description('Whether this deployment also enrols the silo in the hub. Off: the hub\'s owner does, with enrol.bicep.')
param enrol bool = true
@description('`container-app`; or `cluster`: AKS or Arc run deploy/azure/agent.yaml; or `none`: it runs on premises.')
@allowed(['container-app', 'cluster', 'none'])
param runs string = 'container-app'
@description('The issuer of a cluster\'s tokens. Its service account silobus/agent becomes the agent\'s identity.')
param issuer string = ''
@description('The image, below the registry that this makes; empty: everything but the agent, for the first time.')
param image string = ''
@description('The owner\'s policy: heartbeat, tasks and so on, as in silo.yaml.')
param policy object
@allowed(['cpu', 'gpu'])
param size string = 'cpu'
@description('Whether AzureML trains.')
param azureml bool = false
@description('A storage account for AzureML that is there already, in this resource group.')
param existingStorage string = ''
@description('A container of it with data to train on, and a datastore of that name, with _ for hyphens.')
param dataContainer string = ''
@description('How many nodes AzureML may run at once: at least the `instances` of any task. None run while no job does.')
@minValue(1)
param maxNodes int = 1
@description('Days after which weights, private state and results of AzureML\'s jobs are deleted; more than a run may last.')
@minValue(1)
param keepRoundsDays int = 90
param addressPrefix string = '10.30.0.0/24'

var isPrivate = profile == 'private'
var short = replace(silo, '-', '')
var unique = take('${short}${uniqueString(resourceGroup().id, silo)}', 24)
var sizes = loadJsonContent('sizes.json')[size]
var suffix = environment().suffixes.storage
var busZone = 'privatelink.servicebus.windows.net'
var blobZone = 'privatelink.blob.${suffix}'
var fileZone = 'privatelink.file.${suffix}'
var workspaceZones = ['privatelink.api.azureml.ms', 'privatelink.notebooks.azure.net']
var vaultZone = 'privatelink.vaultcore.azure.net'
var onApps = runs == 'container-app'
var homeStays = onApps && isPrivate

resource agent 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: 'agent-${silo}'
  location: location
}

resource clusters 'Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials@2023-01-31' = if (!empty(issuer)) {
  parent: agent
  name: 'cluster'
  properties: {
    issuer: issuer
    subject: 'system:serviceaccount:silobus:agent'
    audiences: ['api://AzureADTokenExchange']
  }
}

module enrolment 'enrol.bicep' = if (enrol) {
  name: 'enrol-${silo}'
  scope: resourceGroup(hub.subscription, hub.resourceGroup)
  params: {
    silo: silo
    namespace: hub.namespace
    storageAccount: hub.storageAccount
    orchestrator: hub.orchestrator
    operators: hub.operators
    operatorType: hub.operatorType
    agent: agent.properties.principalId
  }
}

module registry 'modules/registry.bicep' = {
  name: 'registry'
  params: {
    name: take('${unique}images', 50)
    location: location
    isPrivate: isPrivate
    premium: isPrivate || azureml // AzureML's network reaches it through a private endpoint, in `open` too
    pullers: [agent.properties.principalId]
  }
}

resource logs 'Microsoft.OperationalInsights/workspaces@2023-09-01' = {
  name: '${silo}-logs'
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

module network 'modules/network.bicep' = if (isPrivate) {
  name: 'network'
  params: {
    name: '${silo}-network'
    location: location
    addressPrefix: addressPrefix
    zones: concat(
      [busZone, blobZone, 'privatelink.azurecr.io'],
      homeStays ? [fileZone] : [],
      azureml ? concat(workspaceZones, [vaultZone]) : []
    )
  }
}

// The hub's owner approves these two by hand, unless this deployment may do everything there.
module hubsBus 'modules/endpoint.bicep' = if (isPrivate) {
  name: 'hub-bus-endpoint'
  params: {
    name: '${silo}-to-bus'
    location: location
    subnet: network.outputs.endpoints
    target: resourceId(hub.subscription, hub.resourceGroup, 'Microsoft.ServiceBus/namespaces', hub.namespace)
    service: 'namespace'
    zones: [busZone]
    byHand: !enrol
  }
}

module hubsStore 'modules/endpoint.bicep' = if (isPrivate) {
  name: 'hub-store-endpoint'
  params: {
    name: '${silo}-to-store'
    location: location
    subnet: network.outputs.endpoints
    target: resourceId(hub.subscription, hub.resourceGroup, 'Microsoft.Storage/storageAccounts', hub.storageAccount)
    service: 'blob'
    zones: [blobZone]
    byHand: !enrol
  }
}

module registryEndpoint 'modules/endpoint.bicep' = if (isPrivate) {
  name: 'registry-endpoint'
  params: {
    name: '${silo}-registry'
    location: location
    subnet: network.outputs.endpoints
    target: registry.outputs.id
    service: 'registry'
    zones: ['privatelink.azurecr.io']
  }
}

module apps 'modules/apps.bicep' = if (onApps) {
  name: 'apps'
  params: {
    name: '${silo}-apps'
    location: location
    logs: logs.name
    subnet: isPrivate ? network.outputs.apps : ''
    profiles: sizes.profiles
  }
}

module home 'modules/home.bicep' = if (homeStays) {
  name: 'home'
  params: {
    name: take('home${uniqueString(resourceGroup().id, silo)}', 24)
    location: location
    apps: apps.outputs.name
  }
}

module homeEndpoint 'modules/endpoint.bicep' = if (homeStays) {
  name: 'home-endpoint'
  params: {
    name: '${silo}-home'
    location: location
    subnet: network.outputs.endpoints
    target: home.outputs.id
    service: 'file'
    zones: [fileZone]
  }
}

module app 'modules/app.bicep' = if (onApps && !empty(image)) {
  name: 'agent'
  params: {
    name: 'agent'
    location: location
    environmentId: apps.outputs.id
    image: '${registry.outputs.server}/${image}'
    registry: registry.outputs.server
    identity: agent.id
    clientId: agent.properties.clientId
    arguments: ['run', '--config', '/etc/silobus/silo.yaml']
    settingsFile: 'silo.yaml'
    settings: string(union(policy, {
      silo: silo
      bus: {
        namespace: '${hub.namespace}.servicebus.windows.net'
        credential: 'managed-identity'
      }
      store: {
        account_url: 'https://${hub.storageAccount}.blob.${suffix}'
        credential: 'managed-identity'
      }
      home: '/home/silobus/home'
      health: {
        port: 8080
        host: '0.0.0.0'
      }
    }))
    size: sizes.agent
    minReplicas: 1
    maxReplicas: 1 // one home, one agent
    namespace: hub.namespace
    share: homeStays ? home.outputs.mount : ''
  }
}

module training 'modules/training.bicep' = if (azureml) {
  name: 'training'
  params: {
    name: take(short, 10)
    location: location
    isPrivate: isPrivate
    vmSize: sizes.compute
    maxNodes: maxNodes
    existingStorage: existingStorage
    dataContainer: dataContainer
    keepRoundsDays: keepRoundsDays
    silo: silo
    agent: agent.properties.principalId
    logs: logs.name
    registry: registry.outputs.name
  }
}

module workspaceEndpoint 'modules/endpoint.bicep' = if (azureml && isPrivate) {
  name: 'workspace-endpoint'
  params: {
    name: '${silo}-workspace'
    location: location
    subnet: network.outputs.endpoints
    target: training.outputs.workspaceId
    service: 'amlworkspace'
    zones: workspaceZones
  }
}

module vaultEndpoint 'modules/endpoint.bicep' = if (azureml && isPrivate) {
  name: 'vault-endpoint'
  params: {
    name: '${silo}-vault'
    location: location
    subnet: network.outputs.endpoints
    target: training.outputs.vaultId
    service: 'vault'
    zones: [vaultZone]
  }
}

module storageEndpoint 'modules/endpoint.bicep' = if (azureml && isPrivate) {
  name: 'training-storage-endpoint'
  params: {
    name: '${silo}-training-storage'
    location: location
    subnet: network.outputs.endpoints
    target: training.outputs.storageId
    service: 'blob'
    zones: [blobZone]
  }
}

output agent string = agent.properties.principalId
output clientId string = agent.properties.clientId
output registry string = registry.outputs.server
output workspace string = azureml ? training.outputs.workspace : ''
output trainingStorage string = azureml ? training.outputs.storage : ''
output vault string = azureml ? training.outputs.vault : ''
@description('Of the share that is the home of the agent: its directory is made once, by hand.')
output homeAccount string = homeStays ? home.outputs.account : ''
