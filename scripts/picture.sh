#!/usr/bin/env bash
# Runs the demo, and writes docs/demo.svg from what it prints.
set -euo pipefail
unset CDPATH

cd "$(dirname "${BASH_SOURCE[0]}")/.."

vault=$(scripts/vault-bin.sh)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
VAULT_BIN=$vault scripts/demo.sh >"$dir/demo.txt" || { cat "$dir/demo.txt" >&2; exit 1; }
go run ./tools/picture <"$dir/demo.txt" >"$dir/demo.svg"
cp "$dir/demo.svg" docs/demo.svg
echo docs/demo.svg
