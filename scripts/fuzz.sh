#!/usr/bin/env bash
# Runs all fuzz targets, one after the other. A failing input is saved in testdata/fuzz
# of its package, where go test runs it from then on.
#   FUZZ_TIME     total time, such as 90s, 5m, or 1h (default: 5m)
#   FUZZ_WORKERS  parallel workers (default: the number of processors)
set -euo pipefail
unset CDPATH

cd "$(dirname "${BASH_SOURCE[0]}")/.."

time=${FUZZ_TIME:-5m}
if [[ ! $time =~ ^([1-9][0-9]{0,5})([smh])$ ]]; then
  echo "FUZZ_TIME \"$time\": must be a whole number followed by s, m, or h, such as 5m" >&2
  exit 2
fi
case ${BASH_REMATCH[2]} in
  s) seconds=${BASH_REMATCH[1]} ;;
  m) seconds=$((BASH_REMATCH[1] * 60)) ;;
  h) seconds=$((BASH_REMATCH[1] * 3600)) ;;
esac

targets=()
for package in . ./ati ./internal/guard; do
  names=$(go test -list '^Fuzz' "$package" | grep '^Fuzz') || {
    echo "no fuzz targets in $package, or it does not build" >&2
    exit 1
  }
  for name in $names; do targets+=("$package $name"); done
done
each=$((seconds / ${#targets[@]}))
if [ "$each" -lt 1 ]; then each=1; fi

workers=()
if [ -n "${FUZZ_WORKERS:-}" ]; then workers=(-parallel "$FUZZ_WORKERS"); fi
out=$(mktemp)
trap 'rm -f "$out"' EXIT
failed=0
echo "${#targets[@]} fuzz targets, $each s each"
for target in "${targets[@]}"; do
  read -r package name <<<"$target"
  # By default, Go may spend a minute minimizing one input. Before 1.27, it may report
  # the end of -fuzztime as a failure without an input (go.dev/issue/75804).
  if go test -run '^$' -fuzz "^$name\$" -fuzztime "${each}s" -fuzzminimizetime 20x "${workers[@]}" "$package" >"$out" 2>&1 ||
    [ "$(grep '^ ' "$out")" = '    context deadline exceeded' ]; then
    verdict=ok
  else
    verdict=FAILED
    failed=1
  fi
  # The last count: "fuzz: elapsed: 30s, execs: 12345 (…".
  execs=$(sed -n 's/.*execs: \([0-9]*\).*/\1/p' "$out" | tail -n 1)
  printf '%-6s %-16s %-20s %12s executions\n' "$verdict" "$package" "$name" "${execs:-0}"
  if [ "$verdict" = FAILED ]; then cat "$out"; fi
done
exit "$failed"
