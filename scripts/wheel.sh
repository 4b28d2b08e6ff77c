#!/usr/bin/env bash
# Builds the Python package into a wheel. The same source gives the same files in it.
#   wheel.sh DIRECTORY VERSION    an absolute path, and a version with a leading v
set -euo pipefail
unset CDPATH PYTHONPATH

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh
find_cache
fail() { echo "$*" >&2; exit 1; }

has_python 10 ||
  fail "the Python package needs Python 3.10 or later with pip: install python3 and python3-pip, or set WHEEL=no to release without the package"

hatchling=$cache/hatchling-$(sed -n 's/^hatchling==\([0-9.]*\).*/\1/p' scripts/hatchling.txt)-$(python_tag)
build_once "$hatchling" pip_install --only-binary :all: --require-hashes --requirement scripts/hatchling.txt --target

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -R python/ati_vault python/README.md "$work"
sed "s/^version = .*/version = \"${2#v}\"/" python/pyproject.toml >"$work/pyproject.toml"
(cd "$work" && PYTHONPATH=$hatchling python3 -m hatchling build --target wheel --directory "$1" >log 2>&1) || {
  tail -n 1 "$work/log" >&2
  fail "cannot build the Python package for $2; use a version such as v1.2.3, v1.2.3-rc1, or v1.2.3-dev, or set WHEEL=no"
}
