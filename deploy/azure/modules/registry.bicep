// A registry for images, and who may pull from it.

param name string
param location string
param isPrivate bool
@description('Whether private endpoints lead to it, which takes Premium: in `private`, and from AzureML\'s managed network.')
param premium bool
@description('Identities that run images from it.')
param pullers array

var acrPull = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '7f951dda-4ed3-4680-a7ca-43fe172d538d')

resource registry 'Microsoft.ContainerRegistry/registries@2023-07-01' = {
  name: name
  location: location
  sku: {
    name: premium ? 'Premium' : 'Basic'
  }
  properties: {
    adminUserEnabled: false
    anonymousPullEnabled: false
    publicNetworkAccess: isPrivate ? 'Disabled' : 'Enabled'
  }
}

resource pulls 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for principalId in pullers: {
    scope: registry
    name: guid(registry.id, principalId, acrPull)
    properties: {
      principalId: principalId
      principalType: 'ServicePrincipal'
      roleDefinitionId: acrPull
    }
  }
]

output id string = registry.id
output name string = registry.name
output server string = '${registry.name}.azurecr.io'
