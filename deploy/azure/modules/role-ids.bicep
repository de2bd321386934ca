// The ids of the roles that rights.json names. Makes nothing.

output ids object = {
  sender: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '69a216fc-b8fb-44d8-bc22-1f3c2cd27a39')
  receiver: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0')
  reader: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '2a2b9908-6ea1-4ae2-8e65-a410df84e7d1')
  keeper: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', guid(resourceGroup().id, 'silobus', 'keeper'))
  remover: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', guid(resourceGroup().id, 'silobus', 'remover'))
  writer: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', guid(resourceGroup().id, 'silobus', 'writer'))
  creator: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', guid(resourceGroup().id, 'silobus', 'creator'))
}
