// One grant: one role, for one identity, on one queue or one container. Nothing here has a wider scope.

@allowed(['queue', 'container'])
param on string
@description('The queue, or the container.')
param place string
param namespace string
param storageAccount string
param principalId string
@allowed(['ServicePrincipal', 'User', 'Group'])
param principalType string
@description('The whole id of the role definition.')
param role string

resource bus 'Microsoft.ServiceBus/namespaces@2024-01-01' existing = {
  name: namespace
}

resource queue 'Microsoft.ServiceBus/namespaces/queues@2024-01-01' existing = {
  parent: bus
  name: place
}

resource store 'Microsoft.Storage/storageAccounts@2023-05-01' existing = {
  name: storageAccount
}

resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2023-05-01' existing = {
  parent: store
  name: 'default'
}

resource container 'Microsoft.Storage/storageAccounts/blobServices/containers@2023-05-01' existing = {
  parent: blobs
  name: place
}

resource onQueue 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (on == 'queue') {
  scope: queue
  name: guid(queue.id, principalId, role)
  properties: {
    principalId: principalId
    principalType: principalType
    roleDefinitionId: role
  }
}

resource onContainer 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (on == 'container') {
  scope: container
  name: guid(container.id, principalId, role)
  properties: {
    principalId: principalId
    principalType: principalType
    roleDefinitionId: role
  }
}
