#!/usr/bin/env bash
# Prints shell assignments with the locations of the programs that make interop needs.
# Builds missing ones once, in the user's cache directory.
#   ATI_BIN          the ATI client and proxy (needs cargo and a C compiler)
#   ATI_CLIENT_0_1_0, ATI_CLIENT_0_7_15
#                    PYTHONPATH directories with that version of ati-client
#   HVAC, JSONSCHEMA, MYPY, PYYAML
#                    PYTHONPATH directories with these libraries
set -euo pipefail
unset CDPATH

ati_version=0.7.15
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh
find_cache

require() {
  command -v "$1" >/dev/null || { echo "$1 is not installed; make interop requires cargo, a C compiler, and Python 3" >&2; exit 1; }
}

install_ati() { cargo install agent-tools-interface --version "$ati_version" --locked --root "$1"; }

ati=$cache/ati-$ati_version
if [ ! -d "$ati" ]; then require cargo; require cc; fi
build_once "$ati" install_ati
echo "ATI_BIN=$(printf %q "$ati/bin/ati")"
require python3
python3 -m pip --version >/dev/null 2>&1 || { echo "pip is not installed; make interop requires python3 -m pip" >&2; exit 1; }
python=$(python_tag)
for package in ATI_CLIENT_0_1_0=ati-client==0.1.0 ATI_CLIENT_0_7_15=ati-client==0.7.15 HVAC=hvac==2.4.0 \
  JSONSCHEMA=jsonschema==4.26.0 MYPY=mypy==2.4.1 PYYAML=pyyaml==6.0.3; do
  requirement=${package#*=}
  dir=$cache/${requirement//==/-}-$python
  build_once "$dir" pip_install "$requirement" --target
  echo "${package%%=*}=$(printf %q "$dir")"
done
