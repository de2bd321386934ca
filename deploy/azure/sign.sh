#!/usr/bin/env bash
# Signatures for the blobs of a silo without an identity: one per container, for six days, each with the agent's verbs.
# Whoever runs it is the silo's `signer` in enrol.bicep. Run it again before they are over.
#
#   az login && SILO=abroad STORAGE=account deploy/azure/sign.sh DIRECTORY        (LARGE_MODELS=true as the hub's largeModels)
set -euo pipefail

: "${SILO:?which silo}" "${STORAGE:?the storage account of the hub}"
DIRECTORY="${1:?where to write global.sas and updates-$SILO.sas}"
EXPIRY="$(date -u -d '+6 days' +%Y-%m-%dT%H:%MZ)"
umask 077
mkdir -p "$DIRECTORY"

sign() {
  az storage container generate-sas --as-user --auth-mode login --account-name "$STORAGE" --name "$1" --permissions "$2" \
    --expiry "$EXPIRY" --https-only --output tsv > "$DIRECTORY/$1.sas.new"
  [ -s "$DIRECTORY/$1.sas.new" ]
  mv "$DIRECTORY/$1.sas.new" "$DIRECTORY/$1.sas"
}

sign global r
if [ "${LARGE_MODELS:-false}" = true ]; then
  sign "updates-$SILO" rlcw # blobs of over 32 MiB travel in blocks, for which Azure asks for the right to write
else
  sign "updates-$SILO" rlc
fi
echo "signed until $EXPIRY: $DIRECTORY"
