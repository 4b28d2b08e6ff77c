#!/usr/bin/env bash
# Starts a dev server, Vault or OpenBao, with the plugin and leaves it running. If the
# server is already running, rebuilds the plugin and reloads it.
#   dev.sh          start the server and mount the plugin, or rebuild and reload
#   dev.sh server   start the server and compile the plugin, but do not register it; also
#                   compile what the demo needs for the guard
#   dev.sh stop     stop the server and remove its files
# DEV_DIR is the directory for its files (default: bin/dev).
set -euo pipefail
unset CDPATH

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh
dir=${DEV_DIR:-bin/dev}

# start_server BUILD runs the function BUILD, and starts a dev server that keeps its files
# in $dir. Vault and OpenBao reject paths with symbolic links.
start_server() {
  local binary path product i
  mkdir -p "$dir/plugins" "$dir/bin"
  path=$(cd "$dir" && pwd -P)
  trap clean_up EXIT
  echo "Compiling. The first time, this takes about a minute."
  "$1" &
  binary=$(scripts/vault-bin.sh) || { kill $!; exit 1; }
  wait $!
  unset_vault_env
  ln -s "$binary" "$dir/bin/vault"
  ln -s "$binary" "$dir/bin/bao"
  PATH=$path/bin:$PATH
  product=$(server_version)

  printf 'plugin_directory = "%s/plugins"\n' "$path" >"$dir/server.hcl"
  if [[ $product == OpenBao* ]]; then # does not let requests enable audit devices
    printf 'audit "file" "file" {\n  options { file_path = "%s/audit.log" }\n}\n' "$path" >>"$dir/server.hcl"
  fi
  # Random, so that wait_for_server cannot take another server on this machine for ours.
  export VAULT_TOKEN="dev-$(od -An -tx1 -N12 /dev/urandom | tr -d ' \n')"
  echo "Starting $product (log: $dir/server.log)."
  # If another program has the port, try a different one.
  for i in 1 2 3 4 5; do
    export VAULT_ADDR="http://127.0.0.1:$((20000 + RANDOM % 10000))"
    nohup "$binary" server -dev -dev-no-store-token -dev-root-token-id="$VAULT_TOKEN" \
      -dev-listen-address="${VAULT_ADDR#http://}" -config="$path/server.hcl" >"$dir/server.log" 2>&1 </dev/null &
    echo $! >"$dir/server.pid"
    if wait_for_server $!; then
      [[ $product == OpenBao* ]] || vault audit enable file file_path="$path/audit.log" >/dev/null
      (umask 077 && print_env "$path/bin" >"$dir/env")
      return
    fi
    stop_server
  done
  cat "$dir/server.log" >&2
  echo "$product did not start; see its log above" >&2
  exit 1
}

# server_version prints the server's name and version, such as OpenBao 2.7.2.
server_version() { vault version | sed -n '1s/^\([A-Za-z]*\) v\([0-9.]*\).*/\1 \2/p'; }

# print_env prints what a user's shell needs. bao prefers BAO_TOKEN to VAULT_TOKEN, which
# the examples set.
print_env() {
  printf 'export VAULT_ADDR=%s VAULT_TOKEN=%s\n' "$VAULT_ADDR" "$VAULT_TOKEN"
  printf 'export PATH=%q:"$PATH"\n' "$1"
  echo 'unset VAULT_NAMESPACE VAULT_FORMAT BAO_ADDR BAO_TOKEN BAO_NAMESPACE BAO_FORMAT'
}

# wait_for_server PID returns 1 if the server ends. It does not check the command line,
# which is that of this script until the new process has started the server.
wait_for_server() {
  local i
  for i in $(seq 1 300); do
    kill -0 "$1" 2>/dev/null || return 1
    if vault token lookup >/dev/null 2>&1; then return 0; fi
    sleep 0.1
  done
  return 1
}

# server_is_running reports whether the server that start_server started in $dir is
# running. It checks the command line, because the process ID may have been reused.
server_is_running() {
  local pid command
  pid=$(cat "$dir/server.pid" 2>/dev/null) || return 1
  if [ -d /proc/self ]; then
    command=$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") || return 1
  else
    command=$(ps -o args= -p "$pid") || return 1
  fi
  [[ $command == *"-config=$(cd "$dir" && pwd -P)/server.hcl"* ]]
}

stop_server() {
  local pid i
  if server_is_running; then
    pid=$(cat "$dir/server.pid")
    kill "$pid" 2>/dev/null || true
    for i in $(seq 1 200); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    if server_is_running; then
      echo "the server (process $pid) did not stop within 20 seconds" >&2
      return 1
    fi
  fi
  rm -f "$dir/server.pid"
}

# clean_up stops the server and removes what this script wrote. It keeps other files.
clean_up() {
  if [ ! -d "$dir" ]; then return; fi
  stop_server
  rm -f "$dir"/{server.hcl,server.log,server.pid,audit.log,build.log,env,"$plugin.new"} "$dir/plugins/$plugin"
  rm -rf "$dir"/bin/{vault,bao,ati-guard,ati-demo} "$dir"/guard.{log,token,ati}
  rmdir "$dir/plugins" "$dir/bin" "$dir" 2>/dev/null || true
}

# build_plugin does not overwrite the old file, because the server may be running it.
build_plugin() {
  quietly scripts/build.sh "$dir/$plugin.new"
  mv "$dir/$plugin.new" "$dir/plugins/$plugin"
}

# build_for_demo has the flags of build.sh, so that go compiles each package once.
build_for_demo() {
  build_plugin
  CGO_ENABLED=0 quietly go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$dir/bin/" ./cmd/ati-guard ./scripts/ati-demo
}

# quietly prints the output of a build only if it fails: there may be a hundred downloads.
quietly() {
  if ! "$@" >"$dir/build.log" 2>&1; then
    cat "$dir/build.log" >&2
    exit 1
  fi
  rm "$dir/build.log"
}

case ${1:-} in
  stop)
    clean_up
    exit
    ;;
  server)
    clean_up
    start_server build_for_demo
    trap - EXIT
    exit
    ;;
  "") ;;
  *)
    echo "usage: dev.sh [server | stop]" >&2
    exit 2
    ;;
esac

if server_is_running && [ -f "$dir/env" ]; then
  unset_vault_env
  . "$dir/env"
  find_cli
  say "Compile the plugin and reload it."
  build_plugin
  register_plugin "$dir"
  run "$cli plugin reload -plugin=$plugin"
else
  clean_up
  start_server build_plugin
  find_cli
  say "Register the plugin with its SHA-256 and mount it."
  register_plugin "$dir"
  show "$cli secrets enable -path=ati $plugin"
  say "Write the config, a role, and a policy."
  if [ -n "${ATI_JWT_SECRET:-}" ]; then
    show "printf %s \"\$ATI_JWT_SECRET\" | $cli write ati/config proxy_url=http://127.0.0.1:8090 secret=-"
  else
    show "$cli write ati/config proxy_url=http://127.0.0.1:8090"
  fi
  write_role
  trap - EXIT
fi

say "$(server_version) is running at $VAULT_ADDR. To use it, run in your shell:"
echo "eval \"\$(cat $(printf %q "$dir/env"))\""
echo "$cli write ati/creds/researcher agent_id=sandbox:42"
say "The first of these commands sets:"
cat "$dir/env"
say "To start an ATI proxy behind ati-guard, and call a tool: docs/getting-started.md"
say "To rebuild and reload the plugin: make dev. To stop the server: make dev-stop."
