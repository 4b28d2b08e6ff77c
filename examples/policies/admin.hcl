# Security team: writes the config and roles and rotates the key, but cannot request
# tokens. Anyone who can write the config can import a key that they also keep, and
# anyone who can write policies can grant themselves any access. Both actions are in
# Vault's audit log.
# Checked by TestPolicies_EveryPath.

# Proxy URL, audiences, limits for all roles, and automatic rotation. Like all paths that
# affect the key, this path requires sudo, so that a broad rule such as ati/* does not grant
# access.
path "ati/config" {
  capabilities = ["create", "read", "update", "patch", "delete", "sudo"]
}

# Key versions, and immediate rotation, which invalidates all issued tokens.
path "ati/config/rotate" {
  capabilities = ["read", "update", "sudo"]
}

# The steps of a zero-downtime rotation. A pending version can be deleted.
path "ati/config/rotate/stage" {
  capabilities = ["update", "delete", "sudo"]
}
path "ati/config/rotate/activate" {
  capabilities = ["update", "sudo"]
}
path "ati/config/rotate/rollback" {
  capabilities = ["update", "sudo"]
}
path "ati/config/rotate/retire" {
  capabilities = ["update", "sudo"]
}

# Roles: what tokens grant, for which agents, and for how long.
path "ati/roles" {
  capabilities = ["list"]
}
path "ati/roles/*" {
  capabilities = ["create", "read", "update", "patch", "delete"]
}

# Revoke a token, or all tokens of an agent, and see what is revoked.
path "ati/revoke" {
  capabilities = ["update", "sudo"]
}
path "ati/revoked" {
  capabilities = ["list", "read"]
}

# Check what a role grants, without a token.
path "ati/check/*" {
  capabilities = ["read", "update"]
}

# Hash a value, to search for it in the audit log.
path "sys/audit-hash/file" {
  capabilities = ["update"]
}

# Validate and inspect tokens.
path "ati/validate" {
  capabilities = ["update"]
}
path "ati/inspect" {
  capabilities = ["update"]
}
