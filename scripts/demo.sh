#!/usr/bin/env bash
# Demonstrates the engine on a temporary dev server: what the security team configures,
# what an orchestrator receives and is refused, what the audit log shows, and that the
# guard of a proxy rejects a revoked token. The proxy is ATI's if ati is in PATH. Each line
# that starts with $ can be run in a shell, from the clone.
# DEMO_DIR is the directory for its files (default: bin/demo).
set -euo pipefail
unset CDPATH
exec 2>&1 # keeps errors in order with the other output

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh
dir=${DEMO_DIR:-bin/demo}
mkdir -p "$dir"
mkdir "$dir/lock" 2>/dev/null || dir=$dir-$$ # another demo is running
guard=
trap stop EXIT
trap 'exit 1' INT TERM HUP # also if the command that runs ignores it
quoted=$(printf %q "$dir")

stop() {
  if [ -n "$guard" ]; then
    kill "$guard" 2>/dev/null || true
    wait "$guard" || true
  fi
  DEV_DIR=$dir scripts/dev.sh stop
  rmdir "$dir/lock" "$dir" 2>/dev/null || true
}

# expect shows a request to the guard, and the response, which must have this status.
expect() {
  run "ati-demo expect $1 http://$proxy/tools \$token" || { cat "$dir/guard.log"; exit 1; }
}

echo "# Each line after \$ can be run in a shell. Success messages are left out, and long lines cut."
echo "# Compile the plugin and the guard, and start a dev server with an audit log."
run "DEV_DIR=$quoted scripts/dev.sh server"
unset_vault_env
run ". $quoted/env"
find_cli
find_ati
proxy=127.0.0.1:$(free_port)

say "The security team mounts the plugin with a new key, and writes a role, a policy, and a login."
register_plugin "$dir"
show "$cli secrets enable -path=ati $plugin"
show "$cli write ati/config proxy_url=http://$proxy guarded=true"
write_role
show "$cli auth enable userpass"
show "$cli write auth/userpass/users/orchestrator password=demo token_policies=ati-orchestrator"

if [ "$ati" = ati ]; then
  say "On the proxy's host, ati-guard runs the proxy: $(ati --version), which is in PATH."
  init="RUST_LOG=error ATI_DIR=$quoted/guard.ati ati init"
else
  say "On the proxy's host, ati-guard runs the proxy: scripts/ati-demo, because ATI is not in PATH."
  init="mkdir $quoted/guard.ati"
fi
show "$cli policy write ati-proxy-guard examples/policies/proxy-guard.hcl"
show "(umask 077; $cli token create -policy=ati-proxy-guard -field=token >$quoted/guard.token)"
show "$init"
run "ati-guard -listen=$proxy -admin= -poll=1s -vault.auth.token_file=$quoted/guard.token \\
    -ati=$ati -ati_dir=\"\$(cd $quoted/guard.ati && pwd)\" >$quoted/guard.log 2>&1 & guard=\$!"

say "The orchestrator logs in and requests a token for a sandbox. It never sees the key."
run "export VAULT_TOKEN=\$($cli write -field=token auth/userpass/login/orchestrator password=demo)"
show "$cli write ati/creds/researcher agent_id=sandbox:42 | grep -vE '^(Key|---|aud|key_)'"
run "token=\$($cli write -field=token ati/creds/researcher agent_id=sandbox:42)"

say "It is refused what the role does not grant, a misspelled parameter, and the key."
expect_failure "$cli write ati/creds/researcher tools=github:delete_repo"
expect_failure "$cli write ati/creds/researcher tool=web_search"
expect_failure "$cli read ati/proxy-env"

say "The guard forwards a call with the token to the proxy."
expect 200

say "The security team finds in the audit log who requested it, and revokes it. The guard rejects it."
run ". $quoted/env"
run "jti=\$($cli write -field=jti ati/validate token=\$token)"
show "grep -m 1 \$jti $quoted/audit.log | grep -oE '\"(time|display_name|path)\":\"[^\"]*\"' | xargs"
show "$cli write ati/revoke token=\$token | grep ^revoked_at"
expect 401
run "kill \$guard; DEV_DIR=$quoted scripts/dev.sh stop"
