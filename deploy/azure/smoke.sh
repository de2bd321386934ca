#!/usr/bin/env bash
# The smallest experiment in a real subscription: a hub, two silos, two rounds of a model of a few numbers; then
# everything is deleted again, whatever happened. Takes about half an hour, and bills what README.md says for that long.
#
#   az login && LOCATION=westeurope EMAIL=you@example.org deploy/azure/smoke.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

: "${LOCATION:?where, such as westeurope}" "${EMAIL:?who gets the alerts}"
RUN="smoke$(date +%m%d%H%M%S)"
HUB="$RUN-hub"
SILOS=(north south)
SCRATCH="$(mktemp -d)"
SUBSCRIPTION="$(az account show --query id -o tsv)"

cleanup() {
  status=$?
  set +e
  for role in $(az role definition list --custom-role-only true --scope "/subscriptions/$SUBSCRIPTION/resourceGroups/$HUB" \
                  --query "[?starts_with(roleName, 'Silobus ')].name" -o tsv); do
    az role assignment list --all --role "$role" --query '[].id' -o tsv | xargs -r az role assignment delete --ids
    az role definition delete --name "$role" --scope "/subscriptions/$SUBSCRIPTION/resourceGroups/$HUB"
  done
  for group in "$HUB" "${SILOS[@]/#/$RUN-}"; do
    az group delete --name "$group" --yes --no-wait
  done
  rm -rf "$SCRATCH"
  [ "$status" = 0 ] && echo "smoke: good" || echo "smoke: failed with status $status"
  exit "$status"
}
trap cleanup EXIT

output() { az deployment group show -g "$1" -n "$2" --query "properties.outputs.$3.value" -o tsv; }

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
cat > "$SCRATCH/policy.json" <<POLICY
{"heartbeat": 5, "tasks": {"add": {
  "command": ["python", "add.py"], "directory": "/opt/train", "mode": "per-round",
  "code": {"path": "/opt/train/add.py", "sha256": "$DIGEST"},
  "environment": {"ADD": "1", "SAMPLES": "64", "CONTROL": "/tmp"},
  "limits": {"rounds": 10}, "outbound": {"tensors": ["*"], "dtypes": ["float32"], "max_bytes": 1000000}}}}
POLICY
for silo in "${SILOS[@]}"; do
  group="$RUN-$silo"
  az group create --name "$group" --location "$LOCATION" --output none
  silo() {
    az deployment group create -g "$group" -n silo -f deploy/azure/silo.bicep --output none -p profile=open silo="$silo" \
      hub="{\"subscription\": \"$SUBSCRIPTION\", \"resourceGroup\": \"$HUB\", \"namespace\": \"$NAMESPACE\",
            \"storageAccount\": \"$STORAGE\", \"orchestrator\": \"$ORCHESTRATOR\", \"operators\": [\"$ME\"],
            \"operatorType\": \"User\"}" policy=@"$SCRATCH/policy.json" "$@"
  }
  silo
  registry="$(output "$group" silo registry)"
  az acr build --registry "${registry%%.*}" --image base:1 --file deploy/containers/agent.Dockerfile . --output none
  printf 'FROM %s/base:1\nCOPY add.py /opt/train/add.py\n' "$registry" > "$SCRATCH/image/Dockerfile"
  az acr build --registry "${registry%%.*}" --image agent:1 "$SCRATCH/image" --output none
  silo image=agent:1
done

echo "== two rounds"
cat > "$SCRATCH/operator.yaml" <<OPERATOR
bus: {namespace: $NAMESPACE.servicebus.windows.net, credential: azure-cli}
store: {account_url: "https://$STORAGE.blob.core.windows.net", credential: azure-cli}
silos: [north, south]
scratch: $SCRATCH/scratch
OPERATOR
echo '{"kind": "start-experiment", "experiment": "smoke", "task": "add", "rounds": 2, "quorum": {"minimum": 2}}' \
  > "$SCRATCH/smoke.json"
export SILOBUS_CONFIG="$SCRATCH/operator.yaml"
for _ in $(seq 60); do # grants take minutes to hold, and the agents say hello when theirs do
  if silobus start "$SCRATCH/smoke.json" --wait; then
    silobus model smoke -o "$SCRATCH/model.safetensors"
    silobus queues
    exit 0
  fi
  sleep 20
done
exit 1
