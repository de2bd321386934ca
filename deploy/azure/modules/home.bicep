// A share that stays: an agent's home, with its budget and its egress log. NFS takes no key, and needs a network.

param name string
param location string
@description('The environment of Container Apps, by name.')
param apps string

resource account 'Microsoft.Storage/storageAccounts@2023-05-01' = {
  name: name
  location: location
  kind: 'FileStorage'
  sku: {
    name: 'Premium_LRS'
  }
  properties: {
    allowSharedKeyAccess: false
    allowBlobPublicAccess: false
    minimumTlsVersion: 'TLS1_2'
    supportsHttpsTrafficOnly: false // NFS is not HTTPS; the account is reached through its private endpoint only
    publicNetworkAccess: 'Disabled'
    networkAcls: {
      defaultAction: 'Deny'
      bypass: 'None'
    }
  }
}

resource files 'Microsoft.Storage/storageAccounts/fileServices@2023-05-01' = {
  parent: account
  name: 'default'
}

resource share 'Microsoft.Storage/storageAccounts/fileServices/shares@2023-05-01' = {
  parent: files
  name: 'home'
  properties: {
    enabledProtocols: 'NFS'
    rootSquash: 'NoRootSquash' // the agent is no root; whoever mounts it first has to make its directory
    shareQuota: 100
  }
}

resource environmentOfApps 'Microsoft.App/managedEnvironments@2025-01-01' existing = {
  name: apps
}

resource mount 'Microsoft.App/managedEnvironments/storages@2025-01-01' = {
  parent: environmentOfApps
  name: 'home'
  properties: {
    nfsAzureFile: {
      server: '${account.name}.file.${environment().suffixes.storage}'
      shareName: '/${account.name}/${share.name}'
      accessMode: 'ReadWrite'
    }
  }
}

output id string = account.id
output account string = account.name
output mount string = mount.name
