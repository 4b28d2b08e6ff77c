#!/usr/bin/env bash
# Demonstrates the engine on a temporary Vault dev server: what the security team
# configures, what an orchestrator receives, and what is rejected.
set -euo pipefail
unset CDPATH
exec 2>&1 # keeps errors in order with the other output

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

vault_bin=$(scripts/vault-bin.sh)
unset_vault_env
dir=$(mktemp -d)
trap 'stop_vault "$dir"; rm -rf "$dir"' EXIT

say "Start a Vault dev server: $vault_bin"
start_vault "$dir"
root_token=$VAULT_TOKEN
printf '$ export VAULT_ADDR=%s VAULT_TOKEN=%s\n' "$VAULT_ADDR" "$VAULT_TOKEN"

say "Register the plugin with its SHA-256 and mount it."
register_plugin "$dir"
show vault secrets enable -path=ati "$plugin"

say "The security team sets the proxy's URL and defines what a researcher may do."
show vault write ati/config proxy_url=https://ati.example.com
write_role

write_policy
echo '$ export VAULT_TOKEN=$(vault token create -policy=researcher-orchestrator -display-name=orchestrator -field=token)'
VAULT_TOKEN=$(vault token create -policy=researcher-orchestrator -display-name=orchestrator -field=token)

say "The orchestrator requests a token for a sandbox. It never sees the signing secret."
show vault read ati/creds/researcher | tee "$dir/creds"
token=$(awk '$1 == "token" { print $2 }' "$dir/creds")

say "A request can narrow what the role grants."
show vault read ati/creds/researcher tools=web_search ttl=10m

say "The same token as environment variables for the sandbox."
show vault read ati/creds/researcher tools=web_search ttl=10m format=env

say "A request for more than the role grants is rejected."
expect_failure vault read ati/creds/researcher tools=github:delete_repo

say "Unknown parameters and other paths are rejected too."
expect_failure vault read ati/creds/researcher tool=web_search
expect_failure vault read ati/creds/admin
expect_failure vault read ati/config

say "The security team validates the token and reads its claims."
export VAULT_TOKEN=$root_token
echo '$ printf %s "$token" | vault write ati/validate token=- scope=tool:web_search'
printf %s "$token" | vault write ati/validate token=- scope=tool:web_search

say "The security team checks what the role grants."
show vault read ati/check/researcher scope=tool:arxiv:search
show vault read ati/check/researcher scope=tool:github:delete_repo

say "Done. This server is stopped now; to keep one running, use make dev."
