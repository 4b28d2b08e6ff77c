# shellcheck shell=bash
# Shell functions for the scripts that source this file.

plugin=vault-plugin-secrets-ati

# unset_vault_env unsets variables that are meant for another server, such as
# VAULT_NAMESPACE or VAULT_FORMAT.
unset_vault_env() {
  local name
  for name in "${!VAULT_@}" "${!BAO_@}"; do unset "$name"; done
}

say() { printf '\n# %s\n' "$*"; }

# run prints a command as a user would type it, and runs it in this shell.
run() {
  printf '$ %s\n' "$1"
  eval "$1"
}

# show is run in a subshell, with its output trimmed.
show() {
  printf '$ %s\n' "$1"
  eval "$1" 2>&1 | trim
}

# expect_failure shows a command that must fail, with the last line of its error.
expect_failure() {
  printf '$ %s\n' "$1"
  if eval "$1" 2>&1 | trim | sed -n -e 's/^[[:space:]]*//' -e '$p'; then
    echo "expected this command to fail, but it succeeded" >&2
    exit 1
  fi
}

# trim removes empty lines, messages that need no attention, and what follows column 100.
trim() { sed -e '/^$/d' -e '/^Success!/d' -e '/^WARNING! The following/d' -e 's/^\(.\{99\}\)..*/\1…/'; }

# find_cli sets cli to vault or bao, the name of the CLI in PATH.
find_cli() {
  cli=vault
  if [[ $(vault version) == OpenBao* ]]; then cli=bao; fi
}

# find_ati sets ati to the name of the ATI program in PATH, or else to ati-demo.
find_ati() {
  ati=ati-demo
  if [[ $(ati --version 2>/dev/null) == "ati "* ]]; then ati=ati; fi
}

# free_port prints a port on which no program listens.
free_port() {
  local port
  while port=$((20000 + RANDOM % 10000)); (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

# register_plugin DIR registers the plugin in DIR/plugins with its SHA-256.
register_plugin() {
  local sha256=sha256sum
  command -v sha256sum >/dev/null || sha256="shasum -a 256"
  run "sum=\$($sha256 $(printf %q "$1/plugins/$plugin") | cut -d' ' -f1)"
  show "$cli plugin register -sha256=\$sum secret $plugin"
}

# write_role writes the role and the policy that the documents use.
write_role() {
  show "$cli write ati/roles/researcher tools=web_search,arxiv:search skills=summarize \\
    rate=tool:web_search=30/hour allowed_agent_ids='sandbox:*' ttl=1h max_ttl=4h"
  show "$cli policy write ati-orchestrator examples/policies/orchestrator.hcl"
}

# find_cache sets cache to the directory for what is slow to download or build.
find_cache() {
  cache=${XDG_CACHE_HOME:-${HOME:?set HOME or XDG_CACHE_HOME to locate the cache directory}/.cache}/vault-plugin-secrets-ati
}

# has_python MINOR reports whether there is Python 3.MINOR or later with pip.
has_python() {
  python3 -m pip --version >/dev/null 2>&1 && python3 -c "import sys; sys.exit(sys.version_info < (3, $1))"
}

# python_tag prints the part of a cache directory's name for the version of Python.
python_tag() { python3 -c 'import sys; print("py%d.%d" % sys.version_info[:2])'; }

# pip_install ARGUMENTS... installs packages. For build_once, the last one is --target:
# not into a virtual environment, because that cannot be renamed.
pip_install() {
  PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 python3 -m pip install --quiet --disable-pip-version-check --no-input "$@"
}

# build_once DIR COMMAND... does nothing if DIR exists. Otherwise it appends DIR.new
# to the command and runs it, and renames DIR.new to DIR if the command succeeds.
build_once() {
  local dir=$1 log start=$SECONDS
  shift
  if [ -d "$dir" ]; then return; fi
  echo "building $(basename "$dir") (once)" >&2
  log=$(mktemp)
  rm -rf "$dir.new"
  mkdir -p "$(dirname "$dir")"
  if ! "$@" "$dir.new" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    rm -rf "$log" "$dir.new"
    echo "cannot build $(basename "$dir"); see the output above" >&2
    exit 1
  fi
  rm -f "$log"
  mv "$dir.new" "$dir"
  echo "built $(basename "$dir") in $((SECONDS - start)) s" >&2
}
