#!/usr/bin/env bash
# Builds the plugin or, if the file is named ati-guard, the guard.
#   build.sh OUTPUT_FILE [VERSION]
set -euo pipefail
unset CDPATH

cd "$(dirname "${BASH_SOURCE[0]}")/.."
flags='-s -w'
if [ -n "${2:-}" ]; then
  flags="$flags -X main.version=$2"
fi
# Without the Git revision, so that an unpacked archive and a clone of the same
# source give the same binary.
command=vault-plugin-secrets-ati
if [ "$(basename "$1")" = ati-guard ]; then command=ati-guard; fi
CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "$flags" -o "$1" "./cmd/$command"
