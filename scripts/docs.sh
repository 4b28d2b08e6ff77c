#!/usr/bin/env bash
# Builds the site into bin/site with MkDocs, and checks all links in its HTML, offline. pip
# downloads what it needs once (about 100 MB), into the user's cache directory.
set -euo pipefail
unset CDPATH

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh
find_cache

has_python 11 || { echo "make docs requires Python 3.11 or later with pip" >&2; exit 1; }
tools=$cache/site-$(cksum <scripts/docs.txt | cut -d' ' -f1)-$(python_tag)
build_once "$tools" pip_install --no-deps --only-binary :all: --require-hashes --requirement scripts/docs.txt --target

# Not --quiet, because strict mode would then ignore warnings.
NO_MKDOCS_2_WARNING=1 PYTHONPATH=$tools python3 -m mkdocs build --strict 2>&1 | { grep -v '^INFO ' >&2 || true; }
"$tools/bin/lychee" --quiet --no-progress --offline --include-fragments --root-dir "$PWD/bin/site" 'bin/site/**/*.html'
if grep -rE --include='*.html' '<(script|link|img|iframe)[^>]* (src|href)="?(https?:)?//' bin/site; then
  echo "the lines above load something from another host" >&2
  exit 1
fi
echo bin/site/index.html
