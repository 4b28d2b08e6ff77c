#!/usr/bin/env bash
# Builds a release into dist/: for each platform, an archive and an SBOM of the plugin,
# and of ati-guard except for Windows, where it does not run; the Python package;
# SHA256SUMS of these files; and BINARY_SHA256SUMS of the binaries. The same source and the
# same Go version give the same bytes.
#   VERSION            the version (default: the one in main.go)
#   PLATFORMS          such as "linux/amd64 darwin/arm64", or host (default: all eight)
#   WHEEL              no omits the Python package, which needs Python with pip
#   RELEASE_SIGN       a command that signs the file named by its last argument,
#                      such as "gpg --detach-sign --armor" (default: unsigned)
#   SOURCE_DATE_EPOCH  the date of all files (default: the date of the commit)
#   DIST               a directory that is used for releases only (default: dist)
set -euo pipefail
export LC_ALL=C # [0-9A-Za-z] matches only ASCII
unset CDPATH

cd "$(dirname "${BASH_SOURCE[0]}")/.."
programs='vault-plugin-secrets-ati ati-guard'
fail() { echo "$*" >&2; exit 1; }

command -v go >/dev/null || fail "go is missing: install Go"
version=${VERSION:-$(sed -n 's/^var version = "\(.*\)"$/\1/p' cmd/vault-plugin-secrets-ati/main.go)}
number='(0|[1-9][0-9]*)' identifier='(0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)'
[[ $version =~ ^v$number\.$number\.$number(-$identifier(\.$identifier)*)?$ ]] ||
  fail "VERSION=$version: must be a semantic version with a leading v, such as v1.2.3 or v1.2.3-rc1"

if [ "$(git rev-parse --show-toplevel 2>/dev/null)" = "$(pwd -P)" ]; then
  # Ignored files would be packed too, such as the Terraform state of an example.
  changes=$(git status --short; git status --short --ignored docs examples | grep '^!!' || true)
  if [ -n "$changes" ] && [[ -z ${VERSION:-} || $version != *-* ]]; then
    fail "uncommitted changes would make this release impossible to reproduce:
$changes
Commit them, or build a pre-release: make release VERSION=${version%%-*}-dev"
  fi
  date=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
else
  date=${SOURCE_DATE_EPOCH:?is required outside a Git clone, where no commit has a date}
fi
[[ $date =~ ^[0-9]+$ ]] || fail "SOURCE_DATE_EPOCH=$date: must be a number of seconds since 1970"

# The environment must not change the binaries.
unset GOOS GOARCH GOEXPERIMENT
export GOWORK=off GOFIPS140=off GOFLAGS=-mod=readonly GOAMD64=v1 GOARM64=v8.0
platforms=${PLATFORMS:-linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 freebsd/amd64 freebsd/arm64 windows/amd64 windows/arm64}
[[ $platforms == *[![:space:]]* ]] || fail "PLATFORMS is empty"
if [ "$platforms" = host ]; then platforms=$(go env GOHOSTOS)/$(go env GOHOSTARCH); fi
platforms=$(tr -s '[:space:]' '\n' <<<"$platforms" | sort -u)

dist=${DIST:-dist}
mkdir -p "$dist"
dist=$(cd "$dist" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/new"

echo "$version, $(go env GOVERSION)"
wheel=
if [ "${WHEEL:-}" != no ]; then
  SOURCE_DATE_EPOCH=$date scripts/wheel.sh "$work/wheel" "$version"
  wheel=$(echo "$work/wheel"/*.whl)
fi
binaries=()
for platform in $platforms; do
  for program in $programs; do
    if [ "$program" = ati-guard ] && [ "${platform%/*}" = windows ]; then continue; fi
    start=$SECONDS
    binary=$work/$platform/$program
    GOOS=${platform%/*} GOARCH=${platform#*/} scripts/build.sh "$binary" "$version"
    echo "$platform: $program built in $((SECONDS - start)) s"
    binaries+=("$binary")
  done
done
go -C tools/release run -buildvcs=false . pack -root "$PWD" -version "$version" -epoch "$date" -wheel "$wheel" -out "$work/new" "${binaries[@]}"

if [ -n "${RELEASE_SIGN:-}" ]; then
  before=$(ls "$work/new")
  (cd "$work/new" && sh -c "$RELEASE_SIGN SHA256SUMS") || fail "RELEASE_SIGN failed; no release was written"
  [ "$(ls "$work/new")" != "$before" ] || fail "RELEASE_SIGN wrote no file next to SHA256SUMS; no release was written"
fi

# Copy everything to the file system of dist first, since the space may run out.
# Then remove the previous release, whose files SHA256SUMS would not list.
staged=$(mktemp -d "$dist/.new.XXXXXX")
trap 'rm -rf "$work" "$staged"' EXIT
cp "$work/new"/* "$staged"
rm -f "$dist/"*SHA256SUMS*
for program in $programs; do rm -f "$dist/${program}_v"*; done
rm -f "$dist/ati_vault-"*.whl
mv "$staged"/* "$dist"
if [ -n "${RELEASE_SIGN:-}" ]; then
  echo "$dist: SHA256SUMS is signed"
else
  echo "$dist: this release is NOT SIGNED; set RELEASE_SIGN to sign it"
fi
