#!/usr/bin/env bash
# Starts a Vault development server with the plugin and leaves it running. Run
# again after a change, it builds and registers the plugin anew on that server.
#   dev.sh        start, or register again
#   dev.sh stop   end the server
# Its files are in bin/dev, or in the directory DEV_DIR.
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

vault_bin=$(scripts/vault-bin.sh --any)
forget_vault
mkdir -p "$dir"
if runs_vault "$dir" && [ -f "$dir/env" ]; then
  . "$dir/env"
  say "Vault runs at $VAULT_ADDR: build and register the plugin again."
  register "$dir"
  show vault plugin reload -plugin="$plugin"
else
  stop_vault "$dir"
  remove_vault "$dir"
  trap 'stop_vault "$dir"' EXIT # until all is well
  start_vault "$dir"
  say "A Vault development server at $VAULT_ADDR, with the plugin registered and mounted."
  register "$dir"
  show vault secrets enable -path=ati "$plugin"
  if [ -n "${ATI_JWT_SECRET:-}" ]; then
    say "Your proxy holds this secret already."
    echo '$ printf %s "$ATI_JWT_SECRET" | vault write ati/config proxy_url=http://127.0.0.1:8090 secret=-'
    printf %s "$ATI_JWT_SECRET" | vault write ati/config proxy_url=http://127.0.0.1:8090 secret=-
  else
    say "Vault generates the signing key."
    show vault write ati/config proxy_url=http://127.0.0.1:8090
  fi
  say "What a researcher's token may open, how often, and for how long."
  write_role
  write_policy
  # For the next make dev.
  (umask 077 && echo "export VAULT_ADDR=$VAULT_ADDR VAULT_TOKEN=$VAULT_TOKEN" >"$dir/env")
  trap - EXIT
fi

say "Vault is running; its log is $dir/vault.log. In your shell:"
cat "$dir/env"
type -P vault >/dev/null || echo "alias vault=$(quote "$vault_bin")"
echo "vault read ati/creds/researcher"
say "A proxy for it, which gets the secret from Vault:"
echo 'ATI_JWT_SECRET=$(vault read -field=ATI_JWT_SECRET ati/proxy-env) \'
echo '    examples/proxy-agent/ati-proxy-guard --port 8090 --bind 127.0.0.1 --env-keys'
say "After a change: make dev. To end it: make dev-stop."
