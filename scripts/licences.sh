#!/usr/bin/env bash
# Prints docs/licences.md: the licence of each module that the plugin's binary is
# linked from, by the words of the module's own files. An unknown licence fails.
set -euo pipefail
unset CDPATH

cd "$(dirname "${BASH_SOURCE[0]}")/.."
go -C tools/release run -buildvcs=false . licences -root "$PWD"
