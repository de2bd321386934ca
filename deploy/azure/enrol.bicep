// What one silo is in the hub's resource group: its queues, its container, and who may do what there.
//
//   az deployment group create -g HUB -f deploy/azure/enrol.bicep -p silo=north agent=OBJECT-ID ...

targetScope = 'resourceGroup'

@description('Its name: 1 to 40 small letters, digits and inner hyphens.')
@maxLength(40)
param silo string
@description('The hub, as hub.bicep tells in its outputs.')
param namespace string
param storageAccount string
@description('The object id of the orchestrator\'s identity, as hub.bicep tells.')
param orchestrator string
@description('Object ids of who operates, as given to hub.bicep.')
param operators array
@allowed(['Group', 'User', 'ServicePrincipal'])
param operatorType string = 'Group'
@description('The object id of the agent\'s identity; empty: it comes with a key for its queues and a signature for blobs.')
param agent string
@description('Who signs for the blobs of a silo without an identity: has what its agent has on containers, and may sign. Empty: nobody.')
param signer string = ''
@allowed(['Group', 'User', 'ServicePrincipal'])
param signerType string = 'User'

var rights = loadJsonContent('rights.json')
var others = concat(
  [{ who: 'orchestrator', id: orchestrator, type: 'ServicePrincipal', on: ['queue', 'container'] }],
  map(operators, id => { who: 'operator', id: id, type: operatorType, on: ['queue', 'container'] })
)
var agents = concat(
  empty(agent) ? [] : [{ who: 'agent', id: agent, type: 'ServicePrincipal', on: ['queue', 'container'] }],
  empty(signer) ? [] : [{ who: 'agent', id: signer, type: signerType, on: ['container'] }]
)
var rows = flatten(map(concat(agents, others), one => map(
  filter(rights.silo.grants, grant => grant.who == one.who && contains(one.on, grant.on)),
  grant => { one: one, grant: grant, place: replace(grant.place, '{silo}', silo) }
)))

module queues 'modules/queue.bicep' = [
  for queue in rights.silo.queues: {
    name: 'queue-${replace(queue, '{silo}', silo)}'
    params: {
      namespace: namespace
      name: replace(queue, '{silo}', silo)
      keepExpired: queue != 'to-{silo}' // an announcement that nobody took in time is over, and its round was told
    }
  }
]

resource store 'Microsoft.Storage/storageAccounts@2023-05-01' existing = {
  name: storageAccount
}

resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2023-05-01' existing = {
  parent: store
  name: 'default'
}

resource containers 'Microsoft.Storage/storageAccounts/blobServices/containers@2023-05-01' = [
  for container in rights.silo.containers: {
    parent: blobs
    name: replace(container, '{silo}', silo)
    properties: {
      publicAccess: 'None'
    }
  }
]

module roleIds 'modules/role-ids.bicep' = {
  name: 'role-ids-${silo}'
}

module grants 'modules/grant.bicep' = [
  for (row, i) in rows: {
    name: 'grant-${silo}-${i}'
    dependsOn: [queues, containers]
    params: {
      on: row.grant.on
      place: row.place
      namespace: namespace
      storageAccount: storageAccount
      principalId: row.one.id
      principalType: row.one.type
      role: roleIds.outputs.ids[row.grant.role]
    }
  }
]

// A signature allows what its signer may do, and nothing once the signer may not: to ask for the key that signs is this role.
var delegator = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', 'db58b8e5-c6ad-4a2a-8342-4190687cbf4a')

resource signs 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(signer)) {
  scope: store
  name: guid(store.id, signer, delegator)
  properties: {
    principalId: signer
    principalType: signerType
    roleDefinitionId: delegator
  }
}

// A key has the same rights as an identity: one rule of the same name on each of the silo's queues.
module rules 'modules/key-rule.bicep' = [
  for grant in filter(rights.silo.grants, grant => grant.who == 'agent' && grant.on == 'queue'): if (empty(agent)) {
    name: 'rule-${replace(grant.place, '{silo}', silo)}'
    dependsOn: [queues]
    params: {
      namespace: namespace
      queue: replace(grant.place, '{silo}', silo)
      name: 'agent-${silo}'
      role: grant.role
    }
  }
]
