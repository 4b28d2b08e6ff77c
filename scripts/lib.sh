# shellcheck shell=bash
# Shell functions for demo.sh, dev.sh, and bench.sh, which source this file.

plugin=vault-plugin-secrets-ati

# unset_vault_env unsets variables that are meant for another Vault server, such as
# VAULT_NAMESPACE or VAULT_FORMAT.
unset_vault_env() {
  local name
  for name in "${!VAULT_@}" "${!BAO_@}"; do unset "$name"; done
}

say() { printf '\n# %s\n' "$*"; }

# show prints a command as a user would type it and runs it.
show() {
  printf '$ %s\n' "$(quote "$@")"
  "$@"
}

# expect_failure is show for a command that must fail.
expect_failure() {
  printf '$ %s\n' "$(quote "$@")"
  if "$@" 2>&1 | sed '/^$/d'; then
    echo "expected this command to fail, but it succeeded" >&2
    exit 1
  fi
}

# quote prints a command so that it can be pasted into a shell, wrapped to 80 columns
# including the prompt.
quote() {
  local word name line=
  for word in "$@"; do
    name=
    if [[ $word =~ ^[a-z_]+= ]]; then # description='two words', not 'description=two words'
      name=${BASH_REMATCH[0]}
      word=${word#"$name"}
    fi
    if ! [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]*$ ]]; then
      word="'${word//\'/\'\\\'\'}'"
    fi
    word=$name$word
    if [ -z "$line" ]; then
      line=$word
    elif [ $((2 + ${#line} + 1 + ${#word} + 2)) -gt 80 ]; then
      printf '%s \\\n' "$line"
      line="    $word"
    else
      line+=" $word"
    fi
  done
  printf '%s' "$line"
}

# vault runs the Vault binary that vault-bin.sh found, and lets show print "vault".
vault() { "$vault_bin" "$@"; }

sha256() {
  if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d' ' -f1
}

# start_vault DIR starts a dev server that keeps its log, process ID, and plugins in
# DIR, and sets VAULT_ADDR and VAULT_TOKEN.
start_vault() {
  local dir=$1 i
  mkdir -p "$dir/plugins"
  # Random, so that wait_for_vault cannot take another server on this machine for ours.
  export VAULT_TOKEN="dev-$(od -An -tx1 -N12 /dev/urandom | tr -d ' \n')"
  dir=$(cd "$dir" && pwd -P) # Vault rejects a path with symbolic links
  printf 'plugin_directory = "%s/plugins"\n' "$dir" >"$dir/vault.hcl"
  # If another program has the port, try a different one.
  for i in 1 2 3 4 5; do
    export VAULT_ADDR="http://127.0.0.1:$((20000 + RANDOM % 10000))"
    nohup "$vault_bin" server -dev -dev-no-store-token -dev-root-token-id="$VAULT_TOKEN" \
      -dev-listen-address="${VAULT_ADDR#http://}" -config="$dir/vault.hcl" >"$dir/vault.log" 2>&1 </dev/null &
    echo $! >"$dir/vault.pid"
    if wait_for_vault "$dir"; then return; fi
    stop_vault "$dir"
  done
  cat "$dir/vault.log" >&2
  echo "Vault did not start; see its log above" >&2
  return 1
}

wait_for_vault() {
  local i
  for i in $(seq 1 300); do
    vault_is_running "$1" || return 1
    if vault token lookup >/dev/null 2>&1; then return 0; fi
    sleep 0.1
  done
  return 1
}

# vault_is_running DIR reports whether the server that start_vault started in DIR is
# running. It checks the command line, because the process ID may have been reused.
vault_is_running() {
  local pid command
  pid=$(cat "$1/vault.pid" 2>/dev/null) || return 1
  if [ -d /proc/self ]; then
    command=$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") || return 1
  else
    command=$(ps -o args= -p "$pid") || return 1
  fi
  [[ $command == *"-config=$(cd "$1" && pwd -P)/vault.hcl"* ]]
}

# stop_vault DIR stops the server that start_vault started in DIR.
stop_vault() {
  local pid i
  if vault_is_running "$1"; then
    pid=$(cat "$1/vault.pid")
    kill "$pid" 2>/dev/null || true
    for i in $(seq 1 200); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    if vault_is_running "$1"; then
      echo "Vault server (process $pid) did not stop within 20 seconds" >&2
      return 1
    fi
  fi
  rm -f "$1/vault.pid"
}

# remove_vault DIR removes the files that start_vault, register_plugin, and dev.sh
# wrote, and then DIR if it is empty.
remove_vault() {
  rm -f "$1"/{vault.hcl,vault.log,vault.pid,env} "$1/plugins/$plugin"
  rmdir "$1/plugins" "$1" 2>/dev/null || true
}

# register_plugin DIR builds the plugin in DIR/plugins and registers its SHA-256 with
# Vault.
register_plugin() {
  local dir=$1
  # Do not overwrite the old file, because Vault may be running it.
  scripts/build.sh "$dir/$plugin.new"
  mv "$dir/$plugin.new" "$dir/plugins/$plugin"
  show vault plugin register -sha256="$(sha256 "$dir/plugins/$plugin")" secret "$plugin"
}

# write_role and write_policy write what a security team would set up.
write_role() {
  show vault write ati/roles/researcher \
    tools=web_search,arxiv:search skills=summarize \
    rate=tool:web_search=30/hour ttl=1h max_ttl=4h \
    description="reads the web and arXiv"
}

write_policy() {
  local policy='path "ati/creds/researcher" {
  capabilities = ["read", "update"]
}'
  say "Allow an orchestrator to request tokens for this role, and nothing else."
  printf '%s\n' "\$ vault policy write researcher-orchestrator - <<'HCL'" "$policy" HCL
  vault policy write researcher-orchestrator - <<<"$policy"
}
