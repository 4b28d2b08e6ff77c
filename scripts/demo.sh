#!/usr/bin/env bash
# Shows the engine at work on a Vault development server of its own: what the
# security team writes, what an orchestrator gets, and what it is refused.
set -euo pipefail
unset CDPATH
exec 2>&1 # in the order in which it happens

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

vault_bin=$(scripts/vault-bin.sh --any)
forget_vault
dir=$(mktemp -d)
trap 'stop_vault "$dir"; rm -rf "$dir"' EXIT

say "A Vault development server: $vault_bin"
start_vault "$dir"
root_token=$VAULT_TOKEN
printf '$ export VAULT_ADDR=%s VAULT_TOKEN=%s\n' "$VAULT_ADDR" "$VAULT_TOKEN"

say "Register the plugin by its SHA-256, and mount it."
register "$dir"
show vault secrets enable -path=ati "$plugin"

say "The security team says where the proxy is, and what a researcher may do."
show vault write ati/config proxy_url=https://ati.example.com
write_role

write_policy
echo '$ export VAULT_TOKEN=$(vault token create -policy=researcher-orchestrator -display-name=orchestrator -field=token)'
VAULT_TOKEN=$(vault token create -policy=researcher-orchestrator -display-name=orchestrator -field=token)

say "The orchestrator gets a sandbox's token, and never the signing secret."
show vault read ati/creds/researcher | tee "$dir/answer"
token=$(awk '$1 == "token" { print $2 }' "$dir/answer")

say "A token for less than the role grants."
show vault read ati/creds/researcher tools=web_search ttl=10m

say "The same as the sandbox's environment."
show vault read ati/creds/researcher tools=web_search ttl=10m format=env

say "More than the role grants is refused."
refused vault read ati/creds/researcher tools=github:delete_repo

say "So are a misspelt parameter, and other paths."
refused vault read ati/creds/researcher tool=web_search
refused vault read ati/creds/admin
refused vault read ati/config

say "The security team checks the first token, as the proxy would: its claims."
export VAULT_TOKEN=$root_token
echo '$ printf %s "$token" | vault write ati/validate token=- scope=tool:web_search'
printf %s "$token" | vault write ati/validate token=- scope=tool:web_search

say "And what the role opens."
show vault read ati/check/researcher scope=tool:arxiv:search
show vault read ati/check/researcher scope=tool:github:delete_repo

say "Done. The server is stopped; make dev leaves one running."
