#!/usr/bin/env bash
# Runs the Go benchmarks, then measures the engine and other plugins on real servers, of
# Vault and OpenBao, and ati-guard in front of a real ATI proxy (see bench/). Requires Linux,
# because it reads /proc. Without nginx on the PATH, it skips the comparison with nginx.
#   BENCHTIME       time per Go benchmark (default: 1s)
#   BENCH_ROUNDS    rounds on each server (default: 7)
#   BENCH_DURATION  time per scenario and round, with and without audit (default: 1s)
#   BENCH_ROLES     number of roles in the largest mount (default: 100000)
#   BENCH_OUT       directory of performance.md, and of the charts in images/
#                   (default: docs; empty: do not write them)
set -euo pipefail
unset CDPATH

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh
vault=$(scripts/vault-bin.sh source)
bao=$(scripts/vault-bin.sh openbao)
unset_vault_env
parts=$(scripts/interop-parts.sh)
eval "$parts"
nginx=$(PATH=$PATH:/usr/sbin command -v nginx) || echo "nginx is not on the PATH; measuring without it" >&2
out=${BENCH_OUT-docs}
if [ -n "$out" ]; then out=$(cd "$out" && pwd); fi
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

go test -run '^$' -bench . -benchmem -benchtime "${BENCHTIME:-1s}" . ./ati
scripts/build.sh "$dir/ati"
scripts/build.sh "$dir/ati-guard"
cd bench
CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$dir/echo" ./echo
go build -o "$dir/bench" .
"$dir/bench" -vault "$vault" -bao "$bao" -plugin "$dir/ati" -echo "$dir/echo" -ati "$ATI_BIN" -guard "$dir/ati-guard" -nginx "$nginx" \
  -rounds "${BENCH_ROUNDS:-7}" -duration "${BENCH_DURATION:-1s}" -roles "${BENCH_ROLES:-100000}" \
  -out "$out"
