#!/usr/bin/env bash
# Builds what is released, into dist/: for each platform an archive and its SBOM;
# SHA256SUMS over these, and BINARY_SHA256SUMS over the binaries. The same source
# gives, with the same Go, the same bytes.
#   VERSION            the version (main.go's)
#   PLATFORMS          as in "linux/amd64 darwin/arm64", or host (all eight)
#   RELEASE_SIGN       a command that signs the file whose name is put behind it,
#                      as in "gpg --detach-sign --armor" (none: nothing is signed)
#   SOURCE_DATE_EPOCH  the date of all files (the commit's)
#   DIST               a directory for releases only (dist)
set -euo pipefail
export LC_ALL=C # so that [0-9A-Za-z] is these characters
unset CDPATH

cd "$(dirname "${BASH_SOURCE[0]}")/.."
name=vault-plugin-secrets-ati
fail() { echo "$*" >&2; exit 1; }

command -v go >/dev/null || fail "go is missing: install Go"
version=${VERSION:-$(sed -n 's/^var version = "\(.*\)"$/\1/p' cmd/$name/main.go)}
number='(0|[1-9][0-9]*)' identifier='(0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)'
[[ $version =~ ^v$number\.$number\.$number(-$identifier(\.$identifier)*)?$ ]] ||
  fail "VERSION=$version: must be a semantic version with a leading v, as in v1.2.3 or v1.2.3-rc1"

if [ "$(git rev-parse --show-toplevel 2>/dev/null)" = "$(pwd -P)" ]; then
  # An ignored file would be packed too: say, the state of an example's Terraform.
  changes=$(git status --short; git status --short --ignored docs examples | grep '^!!' || true)
  if [ -n "$changes" ] && [[ -z ${VERSION:-} || $version != *-* ]]; then
    fail "These changes are in no commit, so nobody could build this release again:
$changes
Commit them, or make a pre-release: make release VERSION=${version%%-*}-dev"
  fi
  date=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
else
  date=${SOURCE_DATE_EPOCH:?is not set, and this is no clone of the repository whose commit has a date}
fi
[[ $date =~ ^[0-9]+$ ]] || fail "SOURCE_DATE_EPOCH=$date: must be a number of seconds since 1970"

# Nothing of the environment is to change the binaries.
unset GOOS GOARCH GOEXPERIMENT
export GOWORK=off GOFIPS140=off GOFLAGS=-mod=readonly GOAMD64=v1 GOARM64=v8.0
platforms=${PLATFORMS:-linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 freebsd/amd64 freebsd/arm64 windows/amd64 windows/arm64}
[[ $platforms == *[![:space:]]* ]] || fail "PLATFORMS names no platform"
if [ "$platforms" = host ]; then platforms=$(go env GOHOSTOS)/$(go env GOHOSTARCH); fi
platforms=$(tr -s '[:space:]' '\n' <<<"$platforms" | sort -u) # one named twice is one

dist=${DIST:-dist}
mkdir -p "$dist"
dist=$(cd "$dist" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/new"

echo "$name $version, $(go env GOVERSION)"
binaries=()
for platform in $platforms; do
  start=$SECONDS
  binary=$work/${platform//\//_}
  GOOS=${platform%/*} GOARCH=${platform#*/} scripts/build.sh "$binary" "$version"
  echo "$platform: built in $((SECONDS - start)) s"
  binaries+=("$binary")
done
go -C tools/release run -buildvcs=false . pack -root "$PWD" -version "$version" -epoch "$date" -out "$work/new" "${binaries[@]}"

if [ -n "${RELEASE_SIGN:-}" ]; then
  before=$(ls "$work/new")
  (cd "$work/new" && sh -c "$RELEASE_SIGN SHA256SUMS") || fail "RELEASE_SIGN failed, and so there is no release"
  [ "$(ls "$work/new")" != "$before" ] || fail "RELEASE_SIGN wrote no file beside SHA256SUMS, and so there is no release"
fi

# First all of it into that file system, where it may not fit. Files of a former
# release would stand in no list of sums.
staged=$(mktemp -d "$dist/.new.XXXXXX")
trap 'rm -rf "$work" "$staged"' EXIT
cp "$work/new"/* "$staged"
rm -f "$dist/${name}_v"* "$dist/"*SHA256SUMS*
mv "$staged"/* "$dist"
if [ -n "${RELEASE_SIGN:-}" ]; then
  echo "$dist: SHA256SUMS is signed"
else
  echo "$dist: this release is NOT SIGNED, since RELEASE_SIGN is not set"
fi
