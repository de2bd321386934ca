// Roles on blobs that Azure does not have: each is narrower than Storage Blob Data Contributor, which also deletes, and
// deletes whole containers.

@description('Models over 32 MiB travel in blocks, for which Azure asks for the right to write: creators may then replace.')
param largeModels bool
@description('Makes the names of the roles unique in the tenant.')
param suffix string

var here = resourceGroup().id
var blobs = 'Microsoft.Storage/storageAccounts/blobServices/containers/blobs'
var create = concat(['${blobs}/add/action'], largeModels ? ['${blobs}/write'] : [])
var roles = [
  {
    key: 'keeper'
    called: 'Silobus Blob Keeper'
    description: 'Reads, lists, creates, replaces and deletes blobs.'
    dataActions: ['${blobs}/read', '${blobs}/write', '${blobs}/delete']
  }
  {
    key: 'remover'
    called: 'Silobus Blob Remover'
    description: 'Reads, lists and deletes blobs; creates and replaces none.'
    dataActions: ['${blobs}/read', '${blobs}/delete']
  }
  {
    key: 'writer'
    called: 'Silobus Blob Writer'
    description: 'Reads, lists, creates and replaces blobs; deletes none.'
    dataActions: ['${blobs}/read', '${blobs}/write']
  }
  {
    key: 'creator'
    called: 'Silobus Blob Creator'
    description: 'Reads and lists blobs, and creates new ones.'
    dataActions: concat(['${blobs}/read'], create)
  }
]

resource definitions 'Microsoft.Authorization/roleDefinitions@2022-04-01' = [
  for role in roles: {
    name: guid(resourceGroup().id, 'silobus', role.key)
    properties: {
      roleName: '${role.called} (${suffix})'
      description: role.description
      type: 'CustomRole'
      permissions: [
        {
          actions: []
          notActions: []
          dataActions: role.dataActions
          notDataActions: []
        }
      ]
      assignableScopes: [here]
    }
  }
]
