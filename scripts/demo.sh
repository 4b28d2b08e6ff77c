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

say "The security team says where the proxy is. Vault generates the signing secret; only ati/proxy-env, for the proxy's host, ever shows it."
show vault write ati/config proxy_url=https://ati.example.com
show vault read ati/config

write_role
write_policy
echo '$ export VAULT_TOKEN=$(vault token create -policy=researcher-orchestrator -display-name=orchestrator -field=token)'
VAULT_TOKEN=$(vault token create -policy=researcher-orchestrator -display-name=orchestrator -field=token)

say "Now as the orchestrator: a token for a sandbox."
show vault read ati/creds/researcher

say "A token for less than the role grants, here as the sandbox's environment."
show vault read ati/creds/researcher tools=web_search ttl=10m format=env
token=$(vault read -field=token ati/creds/researcher tools=web_search ttl=10m)

say "What the orchestrator is refused: more than the role grants, a misspelt parameter, other paths."
refused vault read ati/creds/researcher tools=github:delete_repo
refused vault read ati/creds/researcher tool=web_search
refused vault read ati/creds/admin
refused vault read ati/config

say "Back to the security team: the claims in such a token, as the proxy sees them."
export VAULT_TOKEN=$root_token
echo '$ printf %s "$token" | vault write ati/validate token=- scope=tool:web_search'
printf %s "$token" | vault write ati/validate token=- scope=tool:web_search

say "And what the role opens."
show vault read ati/check/researcher tool=arxiv:search
show vault read ati/check/researcher tool=github:delete_repo

say "Done. The server is stopped; make dev leaves one running."
