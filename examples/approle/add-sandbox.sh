#!/usr/bin/env bash
# Run for each sandbox before it starts. Creates an AppRole and an identity entity with
# the sandbox's name. The alias of an AppRole is its role ID, so every login with this
# AppRole belongs to this entity.
#
#   add-sandbox.sh NAME DIRECTORY
#
# Writes role_id and secret_id to the directory. The secret ID works once, within
# 10 minutes; Vault Agent then renews its Vault token, up to token_max_ttl. Delete the
# entity and the AppRole when you delete the sandbox. A name that already exists is
# rejected, because the sandbox would take over another one's identity.
#
# Run by TestInteropAppRole.
set -euo pipefail
export LC_ALL=C # so that [a-z] matches only these letters

if [ $# -ne 2 ] || [ ! -d "$2" ] || [ ! -w "$2" ]; then
  echo "usage: $(basename "$0") NAME DIRECTORY (an existing, writable directory)" >&2
  exit 2
fi
name=$1
dir=$2

# Lower case only, because Vault treats names that differ only in case as the same.
if ! [[ $name =~ ^[a-z0-9][a-z0-9._-]{0,63}$ ]]; then
  echo "invalid name \"$name\": use up to 64 characters, a-z, 0-9, and ._-, starting with a letter or digit" >&2
  exit 1
fi

# require_absent PATH WHAT exits unless Vault reports that nothing exists at the path.
# A read that is denied counts as an error.
require_absent() {
  local out
  if out=$(vault read "$1" 2>&1); then
    out="$2 already exists"
  elif [[ $out == *"No value found"* ]]; then
    return
  fi
  echo "$out" >&2
  exit 1
}
require_absent "identity/entity/name/$name" "an entity named $name"
require_absent "auth/approle/role/sandbox-$name" "an AppRole named sandbox-$name, which another sandbox may use,"
entity=$(vault write -field=id identity/entity name="$name")
if [ -z "$entity" ]; then # an update returns no ID
  echo "an entity named $name already exists" >&2
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
