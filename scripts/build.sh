#!/usr/bin/env bash
# Builds the plugin: build.sh <output file> [version]
set -euo pipefail
unset CDPATH

cd "$(dirname "${BASH_SOURCE[0]}")/.."
flags='-s -w'
if [ -n "${2:-}" ]; then
  flags="$flags -X main.version=$2"
fi
# Without what Git knows of the tree: an unpacked source gives the same binary as
# a clone of it.
CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "$flags" -o "$1" ./cmd/vault-plugin-secrets-ati
