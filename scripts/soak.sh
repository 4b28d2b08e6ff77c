#!/usr/bin/env bash
# Runs the tests of faults, load, and hostile input in their long form, and prints
# what each test counted.
#   FUZZ_TIME   total time for fuzzing (default: 5m)
#   SOAK_KILLS, SOAK_PAUSES, SOAK_PARTITIONS, SOAK_PLUGIN_KILLS, SOAK_PLUGIN_PAUSES,
#   SOAK_UPGRADES, SOAK_CRASHES, SOAK_STANDBY_WRITES, SOAK_STANDBY_FAULTS   number of
#               rounds for each kind of fault
#   SOAK_STANDBY_ENTRIES   number of entries that a paused node misses
#   SOAK_MINUTES   how long the key is left to rotate automatically (default: 40)
set -euo pipefail
unset CDPATH

cd "$(dirname "${BASH_SOURCE[0]}")/.."

VAULT_BIN=$(scripts/vault-bin.sh)
export VAULT_BIN
export SOAK=1
parts=$(scripts/interop-parts.sh)
set -a
eval "$parts"
set +a

# run PACKAGE TEST... runs tests, with the build tags in $tags.
run() {
  local package=$1 out
  shift
  out=$(go test -tags "${tags:-}" -list . "$package")
  for test in "$@"; do
    grep -qx "$test" <<<"$out" || { echo "$package has no test $test" >&2; exit 1; }
  done
  # Hide passed subtests, of which there may be thousands.
  go test -tags "${tags:-}" -count=1 -v -parallel 1 -timeout "$((${SOAK_MINUTES:-40} + 60))m" -run "^($(IFS='|'; echo "$*"))\$" "$package" |
    awk '!/^ *(=== (RUN|PAUSE|CONT|NAME)|--- PASS: .*\/)/'
}

run . TestConcurrency_AllRequests TestRotate_RandomSequences
run ./test TestCluster_LeaderKilled TestCluster_Partition TestPluginProcess_FaultsUnderLoad \
  TestStandby_Default TestStandby_Faults TestStandby_SnapshotCatchUp TestStandby_SnapshotCatchUpMinting TestStandby_AllowMinting \
  TestRotate_CrashBetweenStepsIsAtomic TestCluster_SnapshotRestore TestRotate_AutomaticAfterRestore
scripts/fuzz.sh
tags=interop run ./test TestRotationSoak_Automatic
