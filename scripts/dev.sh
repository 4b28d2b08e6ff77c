#!/usr/bin/env bash
# Starts a Vault dev server with the plugin and leaves it running. If the server is
# already running, rebuilds the plugin and reloads it.
#   dev.sh        start the server, or rebuild and reload
#   dev.sh stop   stop the server
# DEV_DIR is the directory for its files (default: bin/dev).
set -euo pipefail
unset CDPATH

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

dir=${DEV_DIR:-bin/dev}
if [ "${1:-}" = stop ]; then
  if [ -d "$dir" ]; then
    stop_vault "$dir"
    remove_vault "$dir"
  fi
  exit
fi

vault_bin=$(scripts/vault-bin.sh)
unset_vault_env
mkdir -p "$dir"
if vault_is_running "$dir" && [ -f "$dir/env" ]; then
  . "$dir/env"
  say "Rebuild the plugin and reload it on the Vault dev server at $VAULT_ADDR."
  register_plugin "$dir"
  show vault plugin reload -plugin="$plugin"
else
  stop_vault "$dir"
  remove_vault "$dir"
  trap 'stop_vault "$dir"' EXIT # if a step below fails
  start_vault "$dir"
  say "Started a Vault dev server at $VAULT_ADDR. Register the plugin and mount it."
  register_plugin "$dir"
  show vault secrets enable -path=ati "$plugin"
  if [ -n "${ATI_JWT_SECRET:-}" ]; then
    say "Import the secret from ATI_JWT_SECRET."
    echo '$ printf %s "$ATI_JWT_SECRET" | vault write ati/config proxy_url=http://127.0.0.1:8090 secret=-'
    printf %s "$ATI_JWT_SECRET" | vault write ati/config proxy_url=http://127.0.0.1:8090 secret=-
  else
    say "Have Vault generate the signing key."
    show vault write ati/config proxy_url=http://127.0.0.1:8090
  fi
  say "Define what a researcher's token grants, its rate limits, and its TTL."
  write_role
  write_policy
  # The next make dev reads this file.
  (umask 077 && echo "export VAULT_ADDR=$VAULT_ADDR VAULT_TOKEN=$VAULT_TOKEN" >"$dir/env")
  trap - EXIT
fi

say "Vault is running (log: $dir/vault.log). To use it, run in your shell:"
cat "$dir/env"
type -P vault >/dev/null || echo "alias vault=$(quote "$vault_bin")"
echo "vault read ati/creds/researcher"
say "To start a proxy with the secret from Vault:"
echo 'ATI_JWT_SECRET=$(vault read -field=ATI_JWT_SECRET ati/proxy-env) \'
echo '    examples/proxy-agent/ati-proxy-guard --port 8090 --bind 127.0.0.1 --env-keys'
say "To rebuild and reload the plugin: make dev. To stop the server: make dev-stop."
