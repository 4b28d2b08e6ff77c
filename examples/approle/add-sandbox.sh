#!/usr/bin/env bash
# For each sandbox, by whoever starts it: an AppRole of its own, and an identity
# entity of its own with the sandbox's name. AppRole's alias is the role id, so
# all logins with it are this entity.
#
#   add-sandbox.sh NAME DIRECTORY
#
# writes role_id and a secret_id that works once, within 10 minutes, to the
# directory. Vault Agent then renews its Vault token, up to token_max_ttl. Delete
# entity and AppRole with the sandbox. A name that is taken is refused: the
# sandbox would be somebody else.
#
# Run by TestInteropAppRole.
set -euo pipefail
export LC_ALL=C # so that [a-z] is these letters

if [ $# -ne 2 ] || [ ! -d "$2" ] || [ ! -w "$2" ]; then
  echo "usage: $0 NAME DIRECTORY (one that is there, and that you can write to)" >&2
  exit 2
fi
name=$1
dir=$2

# Lower case only: Vault takes names that differ in case alone for the same.
if ! [[ $name =~ ^[a-z0-9][a-z0-9._-]{0,63}$ ]]; then
  echo "the name $name must be up to 64 of a-z, 0-9 and ._- beginning with a letter or digit" >&2
  exit 1
fi

# absent PATH WHAT ends the script unless Vault says that there is nothing at a path.
# Who may not read it doesn't know.
absent() {
  local out
  if out=$(vault read "$1" 2>&1); then
    out="there is $2 already"
  elif [[ $out == *"No value found"* ]]; then
    return
  fi
  echo "$out" >&2
  exit 1
}
absent "identity/entity/name/$name" "an entity named $name"
absent "auth/approle/role/sandbox-$name" "an AppRole sandbox-$name, with which another sandbox may log in,"
entity=$(vault write -field=id identity/entity name="$name")
if [ -z "$entity" ]; then # an update answers with nothing
  echo "there is an entity named $name already" >&2
  exit 1
fi

vault write "auth/approle/role/sandbox-$name" \
  token_policies=ati-sandbox token_no_default_policy=true token_ttl=1h token_max_ttl=768h \
  secret_id_num_uses=1 secret_id_ttl=10m >/dev/null
role_id=$(vault read -field=role_id "auth/approle/role/sandbox-$name/role-id")
accessor=$(vault read -field=accessor sys/auth/approle)
vault write identity/entity-alias \
  name="$role_id" canonical_id="$entity" mount_accessor="$accessor" >/dev/null

umask 077
rm -f "$dir/role_id" "$dir/secret_id"
printf %s "$role_id" >"$dir/role_id"
vault write -f -field=secret_id "auth/approle/role/sandbox-$name/secret-id" >"$dir/secret_id"
