#!/usr/bin/env bash
# Runs gofmt, go vet, staticcheck, revive, the word list and govulncheck. If the
# vulnerability database is out of reach, it reports that and goes on.
set -euo pipefail
unset CDPATH

cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools=$PWD/tools/lint/go.mod

unformatted=$(gofmt -l $(git ls-files '*.go'))
if [ -n "$unformatted" ]; then
  printf 'not formatted; run make fmt:\n%s\n' "$unformatted" >&2
  exit 1
fi
go vet -tags docs,interop,kubernetes ./...
go tool -modfile="$tools" staticcheck -tags docs,interop,kubernetes ./...
go tool -modfile="$tools" revive -config tools/lint/revive.toml -set_exit_status -formatter unix . ./internal/... ./ati ./cmd/...
go test -count=1 ./tools/words >&2
go mod verify >/dev/null
go mod tidy -diff
for module in bench tools/release tools/monitor; do
  (
    cd "$module"
    trap 'echo "the paths above are in the module $module" >&2' ERR
    go vet ./...
    go tool -modfile="$tools" staticcheck ./...
    go mod tidy -diff
  )
done

go -C tools/monitor test -count=1 ./... >&2 # of the rules for Prometheus, whose library takes minutes to build

if out=$(go tool -modfile="$tools" govulncheck ./... 2>&1); then
  echo "govulncheck: no known vulnerabilities in the code that is called"
elif [[ $out == *"fetching vulnerabilities: "* ]]; then
  echo "govulncheck: SKIPPED, the vulnerability database cannot be reached"
else
  printf '%s\n' "$out" >&2
  exit 1
fi
echo "gofmt, go vet, staticcheck, revive, words, go mod: clean"
