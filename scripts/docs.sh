#!/usr/bin/env bash
# Builds the site into bin/site with MkDocs, and checks all links in its HTML, offline. pip
# downloads what it needs once (about 100 MB), into the user's cache directory.
set -euo pipefail
unset CDPATH

cache=${XDG_CACHE_HOME:-${HOME:?set HOME or XDG_CACHE_HOME to locate the cache directory}/.cache}/vault-plugin-secrets-ati
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

# Not a virtual environment, because that cannot be renamed.
install_site_tools() {
  PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 python3 -m pip install --quiet --disable-pip-version-check --no-input --no-deps \
    --only-binary :all: --require-hashes --requirement scripts/docs.txt --target "$1"
}

python3 -m pip --version >/dev/null 2>&1 && python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "make docs requires Python 3.11 or later with pip" >&2; exit 1; }
python=py$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
tools=$cache/site-$(cksum <scripts/docs.txt | cut -d' ' -f1)-$python
build_once "$tools" install_site_tools

# Not --quiet, because strict mode would then ignore warnings.
NO_MKDOCS_2_WARNING=1 PYTHONPATH=$tools python3 -m mkdocs build --strict 2>&1 | { grep -v '^INFO ' >&2 || true; }
"$tools/bin/lychee" --quiet --no-progress --offline --include-fragments --root-dir "$PWD/bin/site" 'bin/site/**/*.html'
if grep -rE --include='*.html' '<(script|link|img|iframe)[^>]* (src|href)="?(https?:)?//' bin/site; then
  echo "the lines above load something from another host" >&2
  exit 1
fi
echo bin/site/index.html
