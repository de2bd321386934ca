// One long-running process as a Container App: no ingress, one identity, its settings as a file, asked for its health.

param name string
param location string
@description('The environment it runs in.')
param environmentId string
param image string
param registry string
@description('The resource id of the identity it runs as.')
param identity string
@description('The client id of that identity.')
param clientId string
param arguments array
@description('The settings file, as text. No secret is in it.')
@secure()
param settings string
param settingsFile string
@description('{cpu, memory, workloadProfile}')
param size object
param minReplicas int
param maxReplicas int
@description('Queues that wake it; each message counts.')
param queues array = []
param namespace string
@description('The name of a share of the environment that is its home; none: what it writes goes with its replica.')
param share string = ''

resource app 'Microsoft.App/containerApps@2025-01-01' = {
  name: name
  location: location
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: {
      '${identity}': {}
    }
  }
  properties: {
    environmentId: environmentId
    workloadProfileName: size.workloadProfile
    configuration: {
      activeRevisionsMode: 'Single'
      registries: [
        {
          server: registry
          identity: identity
        }
      ]
      secrets: [
        {
          name: 'settings'
          value: settings // a secret is how Container Apps mounts a file
        }
      ]
    }
    template: {
      terminationGracePeriodSeconds: 60 // after SIGTERM it hands back what it holds, which takes 20 s at most
      containers: [
        {
          name: name
          image: image
          args: arguments
          env: [
            {
              name: 'AZURE_CLIENT_ID'
              value: clientId
            }
            {
              name: 'SETTINGS' // a change of a secret alone makes no new revision, and settings are read when a process starts
              value: uniqueString(settings)
            }
          ]
          resources: {
            cpu: json(size.cpu)
            memory: size.memory
          }
          probes: [
            {
              type: 'Startup'
              httpGet: {
                path: '/healthz'
                port: 8080
              }
              periodSeconds: 5
              failureThreshold: 24
            }
            {
              type: 'Liveness'
              httpGet: {
                path: '/healthz'
                port: 8080
              }
              periodSeconds: 30
              timeoutSeconds: 10
              failureThreshold: 4
            }
          ]
          volumeMounts: [
            {
              volumeName: 'settings'
              mountPath: '/etc/silobus'
            }
            {
              volumeName: 'scratch'
              mountPath: '/tmp'
            }
            {
              volumeName: 'home'
              mountPath: '/home/silobus'
            }
          ]
        }
      ]
      volumes: [
        {
          name: 'settings'
          storageType: 'Secret'
          secrets: [
            {
              secretRef: 'settings'
              path: settingsFile
            }
          ]
        }
        {
          name: 'scratch'
          storageType: 'EmptyDir'
        }
        {
          name: 'home'
          storageType: empty(share) ? 'EmptyDir' : 'NfsAzureFile'
          storageName: empty(share) ? null : share
        }
      ]
      scale: {
        minReplicas: minReplicas
        maxReplicas: maxReplicas
        rules: [
          for queue in queues: {
            name: queue
            custom: {
              type: 'azure-servicebus'
              identity: identity // whoever may listen may also read how long the queue is
              metadata: {
                namespace: namespace
                queueName: queue
                messageCount: '20'
                activationMessageCount: '0'
              }
            }
          }
        ]
      }
    }
  }
}
