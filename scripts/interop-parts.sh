#!/usr/bin/env bash
# Prints, as assignments for a shell, where the real parts for make interop are:
#   ATI_BIN          the ATI client and proxy (needs cargo and a C compiler)
#   ATI_CLIENT_0_1_0, ATI_CLIENT_0_7_15
#                    directories for PYTHONPATH with that version of ati-client
#   HVAC, JSONSCHEMA, PYYAML
#                    the same with these libraries
# What is missing is built, once, in the user's cache directory.
set -euo pipefail
unset CDPATH

cache=${XDG_CACHE_HOME:-${HOME:?is not set, nor is XDG_CACHE_HOME: there is no cache directory to keep the parts in}/.cache}/vault-plugin-secrets-ati
ati_version=0.7.15

need() {
  command -v "$1" >/dev/null || { echo "$1 is missing: make interop needs cargo, a C compiler and Python" >&2; exit 1; }
}

# once DIR COMMAND... runs the command, which makes DIR.new, and moves that to
# DIR when it is whole.
once() {
  local dir=$1 log
  shift
  if [ -d "$dir" ]; then return; fi
  echo "building $(basename "$dir"), once" >&2
  log=$(mktemp)
  rm -rf "$dir.new"
  mkdir -p "$(dirname "$dir")"
  if ! "$@" "$dir.new" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    rm -rf "$log" "$dir.new"
    echo "building $(basename "$dir") failed" >&2
    exit 1
  fi
  rm -f "$log"
  mv "$dir.new" "$dir"
  echo "built $(basename "$dir") after $SECONDS s" >&2
}

install_ati() { cargo install agent-tools-interface --version "$ati_version" --locked --root "$1"; }

# A directory for PYTHONPATH does: a virtual environment can't be moved.
install_python() { PIP_USER=0 python3 -m pip install --quiet --disable-pip-version-check --target "$2" "$1"; }

ati=$cache/ati-$ati_version
if [ ! -d "$ati" ]; then need cargo; need cc; fi
once "$ati" install_ati
echo "ATI_BIN=$(printf %q "$ati/bin/ati")"
need python3
python3 -m pip --version >/dev/null 2>&1 || { echo "pip is missing: make interop needs python3 -m pip" >&2; exit 1; }
python=py$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
for package in ATI_CLIENT_0_1_0=ati-client==0.1.0 ATI_CLIENT_0_7_15=ati-client==0.7.15 HVAC=hvac==2.4.0 \
  JSONSCHEMA=jsonschema==4.26.0 PYYAML=pyyaml==6.0.3; do
  requirement=${package#*=}
  dir=$cache/${requirement//==/-}-$python
  once "$dir" install_python "$requirement"
  echo "${package%%=*}=$(printf %q "$dir")"
done
