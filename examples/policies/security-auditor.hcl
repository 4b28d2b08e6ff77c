# Security auditor: reads everything except keys, and changes nothing.
# Checked by TestPolicies_EveryPath.

# Reading the config requires sudo, which alone allows no other operation. The response
# contains the key's fingerprint, never the key. Do not use a glob here: a capability
# added to ati/config/* later could rotate the key.
path "ati/config" {
  capabilities = ["read", "sudo"]
}
path "ati/config/rotate" {
  capabilities = ["read", "sudo"]
}

# List and read all roles.
path "ati/roles" {
  capabilities = ["list"]
}
path "ati/roles/*" {
  capabilities = ["read"]
}

# See what is revoked.
path "ati/revoked" {
  capabilities = ["list", "read"]
}

# Check what a role grants. Stores nothing, even with update.
path "ati/check/*" {
  capabilities = ["read", "update"]
}

# Hash a value to search for it in the audit log, and look up an entity found there.
path "sys/audit-hash/file" {
  capabilities = ["update"]
}
path "identity/entity/id/*" {
  capabilities = ["read"]
}

# Validate and inspect tokens. The token is sent in the request body, which requires
# update. Neither path changes anything.
path "ati/validate" {
  capabilities = ["update"]
}
path "ati/inspect" {
  capabilities = ["update"]
}
