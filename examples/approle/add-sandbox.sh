#!/usr/bin/env bash
# For each sandbox, by whoever starts it: an AppRole of its own, and an identity
# entity of its own with the sandbox's name. AppRole's alias is the role id, so
# all logins with it are this entity.
#
#   add-sandbox.sh NAME DIRECTORY
#
# writes role_id and a secret_id that works once, within 10 minutes, to the
# directory. Delete entity and role with the sandbox.
#
# Run by TestInteropAppRole.
set -euo pipefail

name=$1
dir=$2

vault write "auth/approle/role/sandbox-$name" \
  token_policies=ati-sandbox token_no_default_policy=true token_ttl=1h \
  secret_id_num_uses=1 secret_id_ttl=10m >/dev/null
role_id=$(vault read -field=role_id "auth/approle/role/sandbox-$name/role-id")

entity=$(vault write -field=id identity/entity name="$name")
accessor=$(vault read -field=accessor sys/auth/approle)
vault write identity/entity-alias \
  name="$role_id" canonical_id="$entity" mount_accessor="$accessor" >/dev/null

(
  umask 077
  printf %s "$role_id" >"$dir/role_id"
  vault write -f -field=secret_id "auth/approle/role/sandbox-$name/secret-id" >"$dir/secret_id"
)
