#!/usr/bin/env bash
# Builds the Python package into a wheel. The same source gives the same files in it.
#   wheel.sh DIRECTORY VERSION    an absolute path, and a version with a leading v
set -euo pipefail
unset CDPATH PYTHONPATH

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh
fail() { echo "$*" >&2; exit 1; }

python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && python3 -m pip --version >/dev/null 2>&1 ||
  fail "the Python package needs Python 3.10 or later with pip: install python3 and python3-pip, or set WHEEL=no to release without the package"

install_hatchling() {
  PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 python3 -m pip install --quiet --disable-pip-version-check --no-input --only-binary :all: \
    --require-hashes --requirement scripts/hatchling.txt --target "$1"
}
cache=${XDG_CACHE_HOME:-${HOME:?set HOME or XDG_CACHE_HOME to locate the cache directory}/.cache}/vault-plugin-secrets-ati
python=py$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
hatchling=$cache/hatchling-$(sed -n 's/^hatchling==\([0-9.]*\).*/\1/p' scripts/hatchling.txt)-$python
build_once "$hatchling" install_hatchling

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -R python/ati_vault python/README.md "$work"
sed "s/^version = .*/version = \"${2#v}\"/" python/pyproject.toml >"$work/pyproject.toml"
(cd "$work" && PYTHONPATH=$hatchling python3 -m hatchling build --target wheel --directory "$1" >log 2>&1) || {
  tail -n 1 "$work/log" >&2
  fail "cannot build the Python package for $2; use a version such as v1.2.3, v1.2.3-rc1, or v1.2.3-dev, or set WHEEL=no"
}
