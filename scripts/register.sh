#!/bin/sh
# Prints the commands that bring the plugin beside this script into a Vault
# server, and runs none of them. For OpenBao, write bao where they say vault.
#   ./register.sh            for the first installation
#   ./register.sh upgrade    where a former version is mounted
#   -d DIR    Vault's plugin_directory (/etc/vault/plugins)
#   -p PATH   where the engine is mounted (ati)
# The version is in the file's name in the plugin directory, so that versions lie
# side by side, and the former one is there to go back to.
set -eu

# make release writes it here.
version=

name=vault-plugin-secrets-ati
directory=/etc/vault/plugins
mount=ati

fail() {
  echo "$*" >&2
  exit 1
}

# quoted writes a word so that a shell reads it as one.
quoted() {
  case $1 in
    *[!A-Za-z0-9_./:=,@%+-]*) printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")" ;;
    *) printf %s "$1" ;;
  esac
}

# The name is not that of FreeBSD's command, which it would call.
sha256_of() {
  if command -v sha256sum >/dev/null; then
    sha256sum <"$1" | cut -d ' ' -f 1
  elif command -v shasum >/dev/null; then
    shasum -a 256 <"$1" | cut -d ' ' -f 1
  elif command -v sha256 >/dev/null; then # FreeBSD
    sha256 -q "$1"
  else
    fail "there is no sha256sum, shasum or sha256"
  fi
}

usage="usage: register.sh [-d plugin directory] [-p path of the mount] [upgrade]"
while getopts d:p: option; do
  case $option in
    d) directory=$OPTARG ;;
    p) mount=$OPTARG ;;
    *) fail "$usage" ;;
  esac
done
shift $((OPTIND - 1))
mount=${mount#/}
mount=${mount%/}
[ -n "$mount" ] || fail "-p must be where the engine is mounted, such as ati"
case $#,${1:-} in
  0,) first=yes ;;
  1,upgrade) first= ;;
  *) fail "$usage" ;;
esac

[ -n "$version" ] || fail "this script is to be run from an unpacked release: make release puts it there"
unset CDPATH
here=$(cd "$(dirname "$0")" && pwd)
extension=
[ -f "$here/$name" ] || extension=.exe
binary=$here/$name$extension
[ -f "$binary" ] || fail "there is no $name beside this script, in $here"
command=$name-$version$extension
sum=$(sha256_of "$binary")
[ ${#sum} -eq 64 ] || fail "the SHA-256 of $binary could not be computed"

cat <<COMMANDS
# On each node of the cluster: the binary, under a name of its own.
cp $(quoted "$binary") $(quoted "${directory%/}/$command")
# Once:
vault plugin register -sha256=$sum -command=$command -version=$version secret $name
COMMANDS
if [ -n "$first" ]; then
  cat <<COMMANDS
vault secrets enable -path=$(quoted "$mount") $name
# Where a former version is mounted already: $(quoted "$0") upgrade
COMMANDS
else
  cat <<COMMANDS
vault secrets tune -plugin-version=$version $(quoted "$mount")
vault plugin reload -plugin=$name
# Says $version:
vault read -field=running_plugin_version sys/mounts/$(quoted "$mount")
COMMANDS
fi
