#!/usr/bin/env bash
# Builds the plugin: build.sh <output file> [version]
set -euo pipefail
unset CDPATH

cd "$(dirname "${BASH_SOURCE[0]}")/.."
flags='-s -w'
if [ -n "${2:-}" ]; then
  flags="$flags -X main.version=$2"
fi
CGO_ENABLED=0 go build -trimpath -ldflags "$flags" -o "$1" ./cmd/vault-plugin-secrets-ati
