#!/usr/bin/env bash
# Runs the tests of faults, load and hostile input in their long form. What each
# of them counted stands in its lines.
#   FUZZ_TIME   of the fuzzing in the end (5m)
#   SOAK_KILLS, SOAK_PAUSES, SOAK_PARTITIONS, SOAK_PLUGIN_KILLS, SOAK_PLUGIN_PAUSES,
#   SOAK_UPGRADES, SOAK_CRASHES   how often each of these befalls a server
set -euo pipefail
unset CDPATH

cd "$(dirname "${BASH_SOURCE[0]}")/.."

VAULT_BIN=$(scripts/vault-bin.sh)
export VAULT_BIN
export SOAK=1

# run <package> <test>...
run() {
  local package=$1 out
  shift
  out=$(go test -list . "$package")
  for test in "$@"; do
    grep -qx "$test" <<<"$out" || { echo "$package has no $test" >&2; exit 1; }
  done
  # Its subtests, which may be thousands, stay silent unless they fail.
  go test -count=1 -v -parallel 1 -timeout 60m -run "^($(IFS='|'; echo "$*"))\$" "$package" |
    awk '!/^ *(=== (RUN|PAUSE|CONT|NAME)|--- PASS: .*\/)/'
}

run . TestEverythingAtOnce TestAnyLifeOfTheKey
run ./test TestAClusterLosesItsLeader TestAPartition TestThePluginsProcessUnderLoad \
  TestACrashBetweenAnyTwoStepsLeavesOneOfTheTwoStates TestASnapshotIsRestoredOnAnotherCluster
scripts/fuzz.sh
