# The security auditor: reads everything but keys, and changes nothing.
# Checked by TestEveryPathUnderEachPolicy.

# Reading config needs sudo, which by itself allows no other operation. The
# answer has the key's fingerprint, never the key. No glob here: under
# ati/config/* another capability, added later, would rotate the key.
path "ati/config" {
  capabilities = ["read", "sudo"]
}
path "ati/config/rotate" {
  capabilities = ["read", "sudo"]
}

# All roles.
path "ati/roles" {
  capabilities = ["list"]
}
path "ati/roles/*" {
  capabilities = ["read"]
}

# What a role opens. Nothing is stored, whatever the operation.
path "ati/check/*" {
  capabilities = ["read", "update"]
}

# What a value is in the audit log, and who an entity in it is.
path "sys/audit-hash/file" {
  capabilities = ["update"]
}
path "identity/entity/id/*" {
  capabilities = ["read"]
}

# What a token is. Both take it in a request's body, hence update; neither
# changes anything.
path "ati/validate" {
  capabilities = ["update"]
}
path "ati/inspect" {
  capabilities = ["update"]
}
