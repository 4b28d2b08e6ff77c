# Functions that demo.sh and dev.sh share. To be sourced.

plugin=vault-plugin-secrets-ati

# forget_vault drops what the shell has set for another Vault, such as
# VAULT_NAMESPACE or VAULT_FORMAT.
forget_vault() {
  local name
  for name in "${!VAULT_@}" "${!BAO_@}"; do unset "$name"; done
}

say() { printf '\n# %s\n' "$*"; }

# show prints a command as one would type it, and runs it. Its own errors are
# shown, and end the script.
show() {
  printf '$ %s\n' "$(quote "$@")"
  "$@"
}

# refused is show for a command that Vault must refuse.
refused() {
  printf '$ %s\n' "$(quote "$@")"
  if "$@" 2>&1 | sed '/^$/d'; then
    echo "this should have been refused" >&2
    exit 1
  fi
}

# quote writes a command so that it can be pasted into a shell, on lines that,
# behind a prompt, have at most 80 columns.
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

# vault is the Vault that was found, under the name that people type.
vault() { "$vault_bin" "$@"; }

sha256() {
  if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d' ' -f1
}

# start_vault DIR starts a development server that keeps its log, its process
# id and its plugins in DIR, and sets VAULT_ADDR and VAULT_TOKEN.
start_vault() {
  local dir=$1 i
  mkdir -p "$dir/plugins"
  # Random, so that nothing else on this machine is taken for our server.
  export VAULT_TOKEN="dev-$(od -An -tx1 -N12 /dev/urandom | tr -d ' \n')"
  dir=$(cd "$dir" && pwd -P) # Vault wants no symbolic link in the path
  printf 'plugin_directory = "%s/plugins"\n' "$dir" >"$dir/vault.hcl"
  # Another program may take a free port before Vault does: then try the next.
  for i in 1 2 3 4 5; do
    export VAULT_ADDR="http://127.0.0.1:$((20000 + RANDOM % 10000))"
    nohup "$vault_bin" server -dev -dev-no-store-token -dev-root-token-id="$VAULT_TOKEN" \
      -dev-listen-address="${VAULT_ADDR#http://}" -config="$dir/vault.hcl" >"$dir/vault.log" 2>&1 </dev/null &
    echo $! >"$dir/vault.pid"
    if wait_for_vault "$dir"; then return; fi
    stop_vault "$dir"
  done
  cat "$dir/vault.log" >&2
  echo "Vault did not start" >&2
  return 1
}

wait_for_vault() {
  local i
  for i in $(seq 1 300); do
    runs_vault "$1" || return 1
    if vault token lookup >/dev/null 2>&1; then return 0; fi
    sleep 0.1
  done
  return 1
}

# runs_vault DIR reports whether the server that start_vault started there runs.
# Its process id alone doesn't tell: it may have gone to another program.
runs_vault() {
  local pid command
  pid=$(cat "$1/vault.pid" 2>/dev/null) || return 1
  if [ -d /proc/self ]; then
    command=$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") || return 1
  else
    command=$(ps -o args= -p "$pid") || return 1
  fi
  [[ $command == *"-config=$(cd "$1" && pwd -P)/vault.hcl"* ]]
}

# stop_vault DIR ends that server.
stop_vault() {
  local pid i
  if runs_vault "$1"; then
    pid=$(cat "$1/vault.pid")
    kill "$pid" 2>/dev/null || true
    for i in $(seq 1 200); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    if runs_vault "$1"; then
      echo "the Vault server, process $pid, has not ended within 20 s" >&2
      return 1
    fi
  fi
  rm -f "$1/vault.pid"
}

# remove_vault DIR removes what start_vault and register wrote, and the
# directory if there is nothing else in it.
remove_vault() {
  rm -f "$1"/{vault.hcl,vault.log,vault.pid,env} "$1/plugins/$plugin"
  rmdir "$1/plugins" "$1" 2>/dev/null || true
}

# register DIR builds the plugin into DIR, and tells Vault its SHA-256.
register() {
  local dir=$1
  # Not over the old file: a running Vault may be using it.
  scripts/build.sh "$dir/$plugin.new"
  mv "$dir/$plugin.new" "$dir/plugins/$plugin"
  show vault plugin register -sha256="$(sha256 "$dir/plugins/$plugin")" secret "$plugin"
}

# A role and a policy, as a security team would write them.
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
  say "An orchestrator may ask for tokens of this role, and nothing else."
  printf '%s\n' "\$ vault policy write researcher-orchestrator - <<'HCL'" "$policy" HCL
  vault policy write researcher-orchestrator - <<<"$policy"
}
