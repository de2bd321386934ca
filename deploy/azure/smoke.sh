#!/usr/bin/env bash
# The smallest experiment in a real subscription: a hub, two silos, two rounds of a model of a few numbers; then
# everything is deleted again, whatever happened. Takes about half an hour, and bills what README.md says for that long.
# With AZUREML=1 the silos train on AzureML: an hour, and two CPU nodes while jobs run. Logs are kept in dist/smoke/.
#
#   az login && LOCATION=westeurope EMAIL=you@example.org [AZUREML=1] deploy/azure/smoke.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

: "${LOCATION:?where, such as westeurope}" "${EMAIL:?who gets the alerts}"
AZUREML="${AZUREML:-0}"
RUN="smoke$(date +%m%d%H%M%S)"
HUB="$RUN-hub"
SILOS=(north south)
LOGS="dist/smoke/$RUN"
SCRATCH="$(mktemp -d)"
SUBSCRIPTION="$(az account show --query id -o tsv)"

output() { az deployment group show -g "$1" -n "$2" --query "properties.outputs.$3.value" -o tsv; }

# Log Analytics goes with its group, so what it knows is asked for before; it lags some minutes behind.
keep_logs() {
  mkdir -p "$LOGS"
  az containerapp logs show -g "$HUB" -n orchestrator --tail 300 > "$LOGS/orchestrator.jsonl" 2>&1
  for silo in "${SILOS[@]}"; do
    az containerapp logs show -g "$RUN-$silo" -n agent --tail 300 > "$LOGS/$silo.jsonl" 2>&1
  done
  az monitor log-analytics query -w "$(output "$HUB" hub logs)" -o json --analytics-query \
    'search "AuthorizationPermissionMismatch" or "AuthorizationFailure" or "Unauthorized" or "Forbidden" | take 200' \
    > "$LOGS/refused.json" 2>&1
}

cleanup() {
  status=$?
  set +e
  keep_logs
  for role in $(az role definition list --custom-role-only true --scope "/subscriptions/$SUBSCRIPTION/resourceGroups/$HUB" \
                  --query "[?starts_with(roleName, 'Silobus ')].name" -o tsv); do
    az role assignment list --all --role "$role" --query '[].id' -o tsv | xargs -r az role assignment delete --ids
    az role definition delete --name "$role" --scope "/subscriptions/$SUBSCRIPTION/resourceGroups/$HUB"
  done
  if [ "$AZUREML" = 1 ]; then # the names of what is deleted half are of this run, so vaults may wait for their seven days
    for silo in "${SILOS[@]}"; do
      az ml workspace delete -g "$RUN-$silo" --name "$(output "$RUN-$silo" silo workspace)" --permanently-delete --yes
    done
  fi
  for group in "$HUB" "${SILOS[@]/#/$RUN-}"; do
    az group delete --name "$group" --yes --no-wait
  done
  rm -rf "$SCRATCH"
  [ "$status" = 0 ] && echo "smoke: good" || echo "smoke: failed with status $status, see $LOGS"
  exit "$status"
}
trap cleanup EXIT

echo "== hub"
ME="$(az ad signed-in-user show --query id -o tsv)"
az group create --name "$HUB" --location "$LOCATION" --output none
hub() {
  az deployment group create -g "$HUB" -n hub -f deploy/azure/hub.bicep --output none -p profile=open name=smoke \
    silos='["north", "south"]' operators="[\"$ME\"]" operatorType=User email="$EMAIL" "$@"
}
hub
REGISTRY="$(output "$HUB" hub registry)"
az acr build --registry "${REGISTRY%%.*}" --image orchestrator:1 --file deploy/containers/orchestrator.Dockerfile . --output none
hub image=orchestrator:1 minReplicas=1
NAMESPACE="$(output "$HUB" hub namespace)"
STORAGE="$(output "$HUB" hub storageAccount)"
ORCHESTRATOR="$(output "$HUB" hub orchestrator)"

echo "== silos"
mkdir -p "$SCRATCH/image"
cp tests/trainers/add.py "$SCRATCH/image/add.py"
DIGEST="$(silobus-agent code-digest tests/trainers/add.py | sed -E 's/.*sha256: ([0-9a-f]{64}).*/\1/')"
echo '{}' > "$SCRATCH/policy.json"
for silo in "${SILOS[@]}"; do
  group="$RUN-$silo"
  az group create --name "$group" --location "$LOCATION" --output none
  silo() {
    az deployment group create -g "$group" -n silo -f deploy/azure/silo.bicep --output none -p profile=open silo="$silo" \
      hub="{\"subscription\": \"$SUBSCRIPTION\", \"resourceGroup\": \"$HUB\", \"namespace\": \"$NAMESPACE\",
            \"storageAccount\": \"$STORAGE\", \"orchestrator\": \"$ORCHESTRATOR\", \"operators\": [\"$ME\"],
            \"operatorType\": \"User\"}" policy=@"$SCRATCH/policy.json" "$@"
  }
  more=()
  if [ "$AZUREML" = 1 ]; then more=(azureml=true); fi
  silo ${more[@]+"${more[@]}"}
  registry="$(output "$group" silo registry)"
  extras=''
  compute=''
  if [ "$AZUREML" = 1 ]; then
    extras=azureml
    printf 'FROM python:3.11.14-slim-bookworm\nRUN pip install --no-cache-dir numpy safetensors\n' > "$SCRATCH/image/Dockerfile"
    az acr build --registry "${registry%%.*}" --image train:1 "$SCRATCH/image" --output none
    train="$(az acr repository show --name "${registry%%.*}" --image train:1 --query digest -o tsv)"
    workspace="$(output "$group" silo workspace)"
    storage="$(output "$group" silo trainingStorage)"
    az ml workspace provision-network -g "$group" --name "$workspace" --output none
    compute="\"timeout\": 900, \"compute\": {\"azureml\": {
      \"subscription\": \"$SUBSCRIPTION\", \"resource_group\": \"$group\", \"workspace\": \"$workspace\",
      \"credential\": \"managed-identity\", \"compute\": \"train\", \"node_hours\": 4,
      \"environment\": {\"image\": \"$registry/train@$train\"},
      \"datastore\": {\"name\": \"training\", \"container\": \"training\", \"store\": {
        \"account_url\": \"https://$storage.blob.core.windows.net\", \"credential\": \"managed-identity\"}}}},"
  else
    compute='"directory": "/opt/train", "mode": "per-round",'
  fi
  az acr build --registry "${registry%%.*}" --image base:1 --build-arg EXTRAS="$extras" --file deploy/containers/agent.Dockerfile . \
    --output none
  printf 'FROM %s/base:1\nCOPY add.py /opt/train/add.py\n' "$registry" > "$SCRATCH/image/Dockerfile"
  az acr build --registry "${registry%%.*}" --image agent:1 "$SCRATCH/image" --output none
  cat > "$SCRATCH/policy.json" <<POLICY
{"heartbeat": 5, "tasks": {"add": {
  "command": ["python", "add.py"], $compute
  "code": {"path": "/opt/train/add.py", "sha256": "$DIGEST"},
  "environment": {"ADD": "1", "SAMPLES": "64", "CONTROL": "/tmp"},
  "limits": {"rounds": 10}, "outbound": {"tensors": ["*"], "dtypes": ["float32"], "max_bytes": 1000000}}}}
POLICY
  silo ${more[@]+"${more[@]}"} image=agent:1
  echo '{}' > "$SCRATCH/policy.json"
done

echo "== two rounds"
cat > "$SCRATCH/operator.yaml" <<OPERATOR
bus: {namespace: $NAMESPACE.servicebus.windows.net, credential: azure-cli}
store: {account_url: "https://$STORAGE.blob.core.windows.net", credential: azure-cli}
silos: [north, south]
scratch: $SCRATCH/scratch
OPERATOR
echo '{"kind": "start-experiment", "experiment": "smoke", "task": "add", "rounds": 2, "quorum": {"minimum": 2, "deadline": 3600}}' \
  > "$SCRATCH/smoke.json"
export SILOBUS_CONFIG="$SCRATCH/operator.yaml"
for _ in $(seq 60); do # grants take minutes to hold, and the agents say hello when theirs do
  if silobus start "$SCRATCH/smoke.json" --wait; then
    silobus model smoke -o "$SCRATCH/model.safetensors"
    silobus queues
    if [ "$AZUREML" = 1 ]; then
      for silo in "${SILOS[@]}"; do # one per round, try and silo: initialising, two rounds, and the evaluation
        az ml job list -g "$RUN-$silo" --workspace-name "$(output "$RUN-$silo" silo workspace)" \
          --query '[].{name: name, status: status}' -o table
      done
    fi
    exit 0
  fi
  sleep 20
done
exit 1
