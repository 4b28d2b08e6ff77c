#!/usr/bin/env bash
# Prints the path of a Vault binary: VAULT_BIN if set, and otherwise the pinned
# version, built once from tools/vault into the user's cache directory.
#   --any   before building, look for vault or bao in PATH
set -euo pipefail
unset CDPATH

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# absolute_path prints the absolute path of a program, or fails if there is none.
absolute_path() {
  local path
  path=$(type -P "$1") || return 1
  case $path in
    /*) echo "$path" ;;
    *) echo "$PWD/$path" ;;
  esac
}

if [ -n "${VAULT_BIN:-}" ]; then
  absolute_path "$VAULT_BIN" || { echo "VAULT_BIN: cannot execute $VAULT_BIN" >&2; exit 1; }
  exit
fi
if [ "${1:-}" = --any ]; then
  absolute_path vault && exit
  absolute_path bao && exit
fi
command -v go >/dev/null || { echo "Go is not installed; install it or set VAULT_BIN to a vault binary" >&2; exit 1; }

cd "$root/tools/vault"
version=$(go list -m -f '{{.Version}}' github.com/hashicorp/vault)
key=$(cat go.mod go.sum main.go | cksum | cut -d' ' -f1)
cache=${XDG_CACHE_HOME:-${HOME:?set HOME or XDG_CACHE_HOME to locate the cache directory}/.cache}/vault-plugin-secrets-ati/vault-$version-$key
if [ ! -x "$cache/vault" ]; then
  mkdir -p "$cache"
  out=$(mktemp "$cache/build.XXXXXX")
  log=$(mktemp)
  trap 'rm -f "$out" "$log"' EXIT
  echo "building Vault $version from source (once; takes a few minutes)" >&2
  CGO_ENABLED=0 go build -v -tags minimal -trimpath -ldflags '-s -w' -o "$out" . >"$log" 2>&1 &
  build=$!
  trap 'kill $build 2>/dev/null || true; rm -f "$out" "$log"' EXIT
  reported=0
  while kill -0 $build 2>/dev/null; do
    sleep 1
    if [ $((SECONDS - reported)) -ge 20 ]; then
      reported=$SECONDS
      echo "  … $SECONDS s, $(grep -vc '^go: ' "$log" || true) packages compiled" >&2
    fi
  done
  wait $build || { tail -n 20 "$log" >&2; echo "cannot build Vault; see the output above" >&2; exit 1; }
  chmod 755 "$out"
  mv "$out" "$cache/vault"
  echo "built Vault $version in $SECONDS s" >&2
fi
echo "$cache/vault"
