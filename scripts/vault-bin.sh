#!/usr/bin/env bash
# Prints the path of a Vault binary: VAULT_BIN, or else the pinned Vault, which
# is built from tools/vault once and kept in the user's cache directory. With
# --any, a vault or bao on the PATH goes before building one.
set -euo pipefail
unset CDPATH

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# absolute prints the path of a program, or fails.
absolute() {
  local path
  path=$(type -P "$1") || return 1
  case $path in
    /*) echo "$path" ;;
    *) echo "$PWD/$path" ;;
  esac
}

if [ -n "${VAULT_BIN:-}" ]; then
  absolute "$VAULT_BIN" || { echo "VAULT_BIN=$VAULT_BIN is not a program" >&2; exit 1; }
  exit
fi
if [ "${1:-}" = --any ]; then
  absolute vault && exit
  absolute bao && exit
fi
command -v go >/dev/null || { echo "go is missing: install Go, or set VAULT_BIN to a Vault" >&2; exit 1; }

cd "$root/tools/vault"
version=$(go list -m -f '{{.Version}}' github.com/hashicorp/vault)
key=$(cat go.mod go.sum main.go | cksum | cut -d' ' -f1)
cache=${XDG_CACHE_HOME:-${HOME:?is not set, nor is XDG_CACHE_HOME: there is no cache directory to keep Vault in}/.cache}/vault-plugin-secrets-ati/vault-$version-$key
if [ ! -x "$cache/vault" ]; then
  mkdir -p "$cache"
  out=$(mktemp "$cache/build.XXXXXX")
  log=$(mktemp)
  trap 'rm -f "$out" "$log"' EXIT
  echo "building Vault $version from its source, once; some minutes on two cores" >&2
  CGO_ENABLED=0 go build -v -tags minimal -trimpath -ldflags '-s -w' -o "$out" . >"$log" 2>&1 &
  build=$!
  trap 'kill $build 2>/dev/null || true; rm -f "$out" "$log"' EXIT
  told=0
  while kill -0 $build 2>/dev/null; do
    sleep 1
    if [ $((SECONDS - told)) -ge 20 ]; then
      told=$SECONDS
      echo "  … $SECONDS s, $(grep -vc '^go: ' "$log" || true) packages compiled" >&2
    fi
  done
  wait $build || { tail -n 20 "$log" >&2; echo "building Vault failed" >&2; exit 1; }
  chmod 755 "$out"
  mv "$out" "$cache/vault"
  echo "built Vault $version in $SECONDS s" >&2
fi
echo "$cache/vault"
