// Where Container Apps run: an environment whose logs go to Log Analytics, and that nobody outside can call.

param name string
param location string
@description('The Log Analytics workspace, by name, in this resource group.')
param logs string
@description('A subnet, or nothing: then the environment is in no network of ours.')
param subnet string = ''
@description('Besides Consumption, such as {name, workloadProfileType} of a GPU.')
param profiles array = []

resource workspace 'Microsoft.OperationalInsights/workspaces@2023-09-01' existing = {
  name: logs
}

resource environmentOfApps 'Microsoft.App/managedEnvironments@2025-01-01' = {
  name: name
  location: location
  properties: {
    appLogsConfiguration: {
      destination: 'azure-monitor' // and from there as below; the other way takes a key
    }
    vnetConfiguration: empty(subnet) ? null : {
      infrastructureSubnetId: subnet
      internal: true
    }
    workloadProfiles: concat(
      [
        {
          name: 'Consumption'
          workloadProfileType: 'Consumption'
        }
      ],
      profiles
    )
  }
}

resource toLogs 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  scope: environmentOfApps
  name: 'to-log-analytics'
  properties: {
    workspaceId: workspace.id
    logs: [
      {
        categoryGroup: 'allLogs'
        enabled: true
      }
    ]
  }
}

output id string = environmentOfApps.id
output name string = environmentOfApps.name
