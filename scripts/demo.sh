#!/usr/bin/env bash
# Demonstrates the engine on a temporary dev server: what the security team configures,
# what an orchestrator receives and is refused, and what the audit log shows. Each line
# that starts with $ can be run in a shell, from the clone.
# DEMO_DIR is the directory for its files (default: bin/demo).
set -euo pipefail
unset CDPATH
exec 2>&1 # keeps errors in order with the other output

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh
dir=${DEMO_DIR:-bin/demo}
trap 'DEV_DIR=$dir scripts/dev.sh stop' EXIT
quoted=$(printf %q "$dir")

echo "# Each line after \$ can be run in a shell. Success messages are left out, and long lines cut."
echo "# Compile the plugin, and start a dev server with an audit log."
run "DEV_DIR=$quoted scripts/dev.sh server"
unset_vault_env
run ". $quoted/env"
find_cli

say "The security team mounts the plugin with a new key, and writes a role, a policy, and a login."
register_plugin "$dir"
show "$cli secrets enable -path=ati $plugin"
show "$cli write ati/config proxy_url=https://ati.example.com guarded=true"
write_role
show "$cli auth enable userpass"
show "$cli write auth/userpass/users/orchestrator password=demo token_policies=ati-orchestrator"

say "The orchestrator logs in and requests a token for a sandbox. It never sees the key."
run "export VAULT_TOKEN=\$($cli write -field=token auth/userpass/login/orchestrator password=demo)"
show "$cli write ati/creds/researcher agent_id=sandbox:42"
run "token=\$($cli write -field=token ati/creds/researcher agent_id=sandbox:42)"

say "It is refused what the role does not grant, a misspelled parameter, and the key."
expect_failure "$cli write ati/creds/researcher tools=github:delete_repo"
expect_failure "$cli write ati/creds/researcher tool=web_search"
expect_failure "$cli read ati/proxy-env"

say "The security team validates the token, finds in the audit log who requested it, and revokes it."
run ". $quoted/env"
show "$cli write ati/validate token=\$token | grep -E '^(rate|scope|sub|valid) '"
run "jti=\$($cli write -field=jti ati/validate token=\$token)"
show "grep -m 1 \$jti $quoted/audit.log | grep -oE '\"(time|display_name|path)\":\"[^\"]*\"' | xargs"
show "$cli write ati/revoke token=\$token | grep ^revoked_at"
show "$cli write ati/validate token=\$token | grep ^error"
run "DEV_DIR=$quoted scripts/dev.sh stop"
