// AzureML for a silo: a workspace that nothing leaves but to its own storage, compute that sleeps, and datastores without keys.
//
// Approved outbound only means that AzureML makes private endpoints of its own to the workspace's storage, vault and
// registry, whether or not these can be reached otherwise; so there is no rule for them here.

param name string
param location string
param isPrivate bool
@description('The size of one node; see sizes.json.')
param vmSize string
param maxNodes int
@description('A storage account of the silo that is there already, in this resource group; empty: one is made.')
param existingStorage string
@description('A container of that account with data to train on, made if it is not there; empty: none.')
param dataContainer string
@description('Days after which what went to and came from jobs is deleted, in an account that is made here.')
param keepRoundsDays int
@description('Its name in the federation: where on the datastore its rounds are.')
param silo string
@description('The object id of the agent\'s identity, which starts jobs.')
param agent string
@description('Log Analytics, by name.')
param logs string
@description('The silo\'s registry, by name: images for training come from there.')
param registry string

var dataContributor = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', 'ba92f5b4-2d11-453d-a403-e96b0029c9fe')
var dataReader = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '2a2b9908-6ea1-4ae2-8e65-a410df84e7d1')
var dataScientist = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', 'f6c7c914-8db3-469d-8ca1-694a8f32e121')
var acrPull = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '7f951dda-4ed3-4680-a7ca-43fe172d538d')
var storageName = empty(existingStorage) ? take('${name}${uniqueString(resourceGroup().id)}', 24) : existingStorage

resource made 'Microsoft.Storage/storageAccounts@2023-05-01' = if (empty(existingStorage)) {
  name: storageName
  location: location
  kind: 'StorageV2'
  sku: {
    name: 'Standard_LRS'
  }
  properties: {
    allowSharedKeyAccess: false
    allowBlobPublicAccess: false
    defaultToOAuthAuthentication: true
    minimumTlsVersion: 'TLS1_2'
    supportsHttpsTrafficOnly: true
    publicNetworkAccess: isPrivate ? 'Disabled' : 'Enabled'
    networkAcls: {
      defaultAction: isPrivate ? 'Deny' : 'Allow'
      bypass: 'None'
    }
  }
}

resource storage 'Microsoft.Storage/storageAccounts@2023-05-01' existing = {
  name: storageName
}

// An account that was there before has its owner's rules; there is one set of them for each account.
resource lifecycle 'Microsoft.Storage/storageAccounts/managementPolicies@2023-05-01' = if (empty(existingStorage)) {
  parent: made
  name: 'default'
  properties: {
    policy: {
      rules: [
        {
          name: 'old-rounds'
          enabled: true
          type: 'Lifecycle'
          definition: {
            filters: {
              blobTypes: ['blockBlob']
              prefixMatch: ['training/silobus/${silo}/rounds/']
            }
            actions: {
              baseBlob: {
                delete: {
                  daysAfterModificationGreaterThan: keepRoundsDays
                }
              }
            }
          }
        }
      ]
    }
  }
}

resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2023-05-01' existing = {
  parent: storage
  name: 'default'
}

resource exchange 'Microsoft.Storage/storageAccounts/blobServices/containers@2023-05-01' = {
  parent: blobs
  name: 'training'
  dependsOn: [made]
  properties: {
    publicAccess: 'None'
  }
}

resource records 'Microsoft.Storage/storageAccounts/blobServices/containers@2023-05-01' = if (!empty(dataContainer)) {
  parent: blobs
  name: dataContainer
  dependsOn: [made]
  properties: {
    publicAccess: 'None'
  }
}

resource vault 'Microsoft.KeyVault/vaults@2023-07-01' = {
  name: take('kv${uniqueString(resourceGroup().id, name)}', 24)
  location: location
  properties: {
    tenantId: subscription().tenantId
    sku: {
      family: 'A'
      name: 'standard'
    }
    enableRbacAuthorization: true
    enableSoftDelete: true
    softDeleteRetentionInDays: 7
    publicNetworkAccess: isPrivate ? 'Disabled' : 'Enabled'
    networkAcls: {
      defaultAction: isPrivate ? 'Deny' : 'Allow'
      bypass: 'AzureServices'
    }
  }
}

resource workspaceLogs 'Microsoft.OperationalInsights/workspaces@2023-09-01' existing = {
  name: logs
}

resource insights 'Microsoft.Insights/components@2020-02-02' = {
  name: '${name}-insights'
  location: location
  kind: 'web'
  properties: {
    Application_Type: 'web'
    WorkspaceResourceId: workspaceLogs.id
    DisableLocalAuth: true
  }
}

resource images 'Microsoft.ContainerRegistry/registries@2023-07-01' existing = {
  name: registry
}

resource compute 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: '${name}-compute'
  location: location
}

resource workspace 'Microsoft.MachineLearningServices/workspaces@2024-10-01' = {
  name: '${name}-training'
  location: location
  sku: {
    name: 'Basic'
    tier: 'Basic'
  }
  identity: {
    type: 'SystemAssigned'
  }
  properties: {
    storageAccount: storage.id
    keyVault: vault.id
    applicationInsights: insights.id
    containerRegistry: images.id
    systemDatastoresAuthMode: 'identity'
    publicNetworkAccess: isPrivate ? 'Disabled' : 'Enabled'
    v1LegacyMode: false
    managedNetwork: {
      isolationMode: 'AllowOnlyApprovedOutbound' // in both profiles: the data is the same
    }
  }
  dependsOn: [made]
}

resource cluster 'Microsoft.MachineLearningServices/workspaces/computes@2024-10-01' = {
  parent: workspace
  name: 'train'
  location: location
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: {
      '${compute.id}': {}
    }
  }
  properties: {
    computeType: 'AmlCompute'
    disableLocalAuth: true
    properties: {
      vmSize: vmSize
      vmPriority: 'Dedicated'
      enableNodePublicIp: false
      remoteLoginPortPublicAccess: 'Disabled'
      scaleSettings: {
        minNodeCount: 0
        maxNodeCount: maxNodes
        nodeIdleTimeBeforeScaleDown: 'PT5M'
      }
    }
  }
}

resource datastore 'Microsoft.MachineLearningServices/workspaces/datastores@2024-10-01' = {
  parent: workspace
  name: 'training'
  properties: {
    datastoreType: 'AzureBlob'
    accountName: storage.name
    containerName: exchange.name
    credentials: {
      credentialsType: 'None' // whoever runs the job is asked who they are
    }
  }
}

resource datastoreOfRecords 'Microsoft.MachineLearningServices/workspaces/datastores@2024-10-01' = if (!empty(dataContainer)) {
  parent: workspace
  name: replace(dataContainer, '-', '_') // AzureML's own tools take small letters, digits and underscores
  properties: {
    datastoreType: 'AzureBlob'
    accountName: storage.name
    containerName: dataContainer
    credentials: {
      credentialsType: 'None'
    }
  }
  dependsOn: [records]
}

resource computesData 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: exchange
  name: guid(exchange.id, compute.id, dataContributor)
  properties: {
    principalId: compute.properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: dataContributor
  }
}

resource computesRecords 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(dataContainer)) {
  scope: records
  name: guid(storage.id, dataContainer, compute.id, dataReader)
  properties: {
    principalId: compute.properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: dataReader
  }
}

resource computesImages 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: images
  name: guid(images.id, compute.id, acrPull)
  properties: {
    principalId: compute.properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: acrPull
  }
}

resource agentsData 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: exchange
  name: guid(exchange.id, agent, dataContributor)
  properties: {
    principalId: agent
    principalType: 'ServicePrincipal'
    roleDefinitionId: dataContributor
  }
}

resource agentsJobs 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: workspace
  name: guid(workspace.id, agent, dataScientist)
  properties: {
    principalId: agent
    principalType: 'ServicePrincipal'
    roleDefinitionId: dataScientist
  }
}

output workspaceId string = workspace.id
output workspace string = workspace.name
output storage string = storage.name
output vaultId string = vault.id
output vault string = vault.name
output storageId string = storage.id
output compute string = compute.properties.principalId
