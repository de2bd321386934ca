// What a person is told: dead letters, messages that wait too long, silos that were asked and give no sign of life.
//
// No process of ours ever asks for a key of the namespace, so whoever does is told of as well.
//
// Service Bus has no metric for the age of a message. But where a queue was never empty for a while and nothing was
// completed or set aside, its oldest message has waited for at least that while.

param prefix string
@description('The namespace.')
param busId string
param silos array
param email string
@description('How long a message may wait for an orchestrator, and an announcement for a silo that trains.')
param patience object = {
  orchestrator: 'PT15M'
  silo: 'PT6H'
}

var keyOperations = [
  'authorizationRules/listkeys/action'
  'authorizationRules/regenerateKeys/action'
  'authorizationRules/write'
  'queues/authorizationRules/ListKeys/action'
  'queues/authorizationRules/regenerateKeys/action'
  'queues/authorizationRules/write'
]
var orchestrators = concat(['experiments', 'work'], map(silos, silo => 'from-${silo}'))
var waits = concat(
  map(orchestrators, queue => { queue: queue, window: patience.orchestrator }),
  map(silos, silo => { queue: 'to-${silo}', window: patience.silo })
)

resource people 'Microsoft.Insights/actionGroups@2023-01-01' = {
  name: '${prefix}-operators'
  location: 'global'
  properties: {
    groupShortName: 'silobus'
    enabled: true
    emailReceivers: [
      {
        name: 'operators'
        emailAddress: email
        useCommonAlertSchema: true
      }
    ]
  }
}

resource keysRead 'Microsoft.Insights/activityLogAlerts@2020-10-01' = {
  name: '${prefix}-keys-read'
  location: 'global'
  properties: {
    description: 'Somebody read or renewed a key of the namespace: az monitor activity-log list'
    enabled: true
    scopes: [busId]
    condition: {
      allOf: [
        {
          field: 'category'
          equals: 'Administrative'
        }
        {
          anyOf: [
            for operation in keyOperations: {
              field: 'operationName'
              equals: 'Microsoft.ServiceBus/namespaces/${operation}'
            }
          ]
        }
      ]
    }
    actions: {
      actionGroups: [
        {
          actionGroupId: people.id
        }
      ]
    }
  }
}

resource deadLetters 'Microsoft.Insights/metricAlerts@2018-03-01' = {
  name: '${prefix}-dead-letters'
  location: 'global'
  properties: {
    description: 'A message that can never succeed was set aside: silobus dead-letters list QUEUE'
    severity: 2
    enabled: true
    scopes: [busId]
    evaluationFrequency: 'PT5M'
    windowSize: 'PT5M'
    criteria: {
      'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
      allOf: [
        {
          criterionType: 'StaticThresholdCriterion'
          name: 'dead letters'
          metricName: 'DeadletteredMessages'
          dimensions: [
            {
              name: 'EntityName'
              operator: 'Include'
              values: ['*']
            }
          ]
          operator: 'GreaterThan'
          threshold: 0
          timeAggregation: 'Maximum'
        }
      ]
    }
    actions: [
      {
        actionGroupId: people.id
      }
    ]
  }
}

resource oldest 'Microsoft.Insights/metricAlerts@2018-03-01' = [
  for wait in waits: {
    name: '${prefix}-oldest-in-${wait.queue}'
    location: 'global'
    properties: {
      description: 'The oldest message in ${wait.queue} has waited for at least ${wait.window}: silobus queues'
      severity: 2
      enabled: true
      scopes: [busId]
      evaluationFrequency: 'PT5M'
      windowSize: wait.window
      criteria: {
        'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
        allOf: [
          {
            criterionType: 'StaticThresholdCriterion'
            name: 'never empty'
            metricName: 'ActiveMessages'
            dimensions: [
              {
                name: 'EntityName'
                operator: 'Include'
                values: [wait.queue]
              }
            ]
            operator: 'GreaterThan'
            threshold: 0
            timeAggregation: 'Minimum'
          }
          {
            criterionType: 'StaticThresholdCriterion'
            name: 'nothing done'
            metricName: 'CompleteMessage'
            dimensions: [
              {
                name: 'EntityName'
                operator: 'Include'
                values: [wait.queue]
              }
            ]
            operator: 'LessThanOrEqual'
            threshold: 0
            timeAggregation: 'Total'
          }
        ]
      }
      actions: [
        {
          actionGroupId: people.id
        }
      ]
    }
  }
]

resource heartbeats 'Microsoft.Insights/metricAlerts@2018-03-01' = [
  for silo in silos: {
    name: '${prefix}-no-heartbeat-${silo}'
    location: 'global'
    properties: {
      description: '${silo} was asked and gives no sign of life: silobus status'
      severity: 2
      enabled: true
      scopes: [busId]
      evaluationFrequency: 'PT1M'
      windowSize: 'PT5M' // heartbeats come every 15 s
      criteria: {
        'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
        allOf: [
          {
            criterionType: 'StaticThresholdCriterion'
            name: 'asked'
            metricName: 'ActiveMessages'
            dimensions: [
              {
                name: 'EntityName'
                operator: 'Include'
                values: ['to-${silo}']
              }
            ]
            operator: 'GreaterThan'
            threshold: 0
            timeAggregation: 'Minimum'
          }
          {
            criterionType: 'StaticThresholdCriterion'
            name: 'silent'
            metricName: 'IncomingMessages'
            dimensions: [
              {
                name: 'EntityName'
                operator: 'Include'
                values: ['from-${silo}']
              }
            ]
            operator: 'LessThanOrEqual'
            threshold: 0
            timeAggregation: 'Total'
          }
        ]
      }
      actions: [
        {
          actionGroupId: people.id
        }
      ]
    }
  }
]
