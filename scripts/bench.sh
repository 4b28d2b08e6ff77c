#!/usr/bin/env bash
# Runs the Go benchmarks, then measures the engine on a real Vault beside other
# plugins. See bench/. It reads /proc, and so runs on Linux only.
#   BENCHTIME       for each Go benchmark (1s)
#   BENCH_ROUNDS    rounds on the real Vault (7)
#   BENCH_DURATION  for each scenario in a round, twice: with audit and without (1.5s)
#   BENCH_ROLES     roles of the largest mount (100000)
#   BENCH_OUT       directory whose performance.md and performance.svg are written
#                   (docs); empty: none
set -euo pipefail
unset CDPATH

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh
vault=$(scripts/vault-bin.sh)
forget_vault
out=${BENCH_OUT-docs}
if [ -n "$out" ]; then out=$(cd "$out" && pwd); fi
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

go test -run '^$' -bench . -benchmem -benchtime "${BENCHTIME:-1s}" . ./ati
scripts/build.sh "$dir/ati"
cd bench
CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$dir/echo" ./echo
go build -o "$dir/bench" .
"$dir/bench" -vault "$vault" -plugin "$dir/ati" -echo "$dir/echo" \
  -rounds "${BENCH_ROUNDS:-7}" -duration "${BENCH_DURATION:-1.5s}" -roles "${BENCH_ROLES:-100000}" \
  -out "$out"
