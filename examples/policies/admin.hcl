# The security team: writes config and roles, rotates the key, and mints
# nothing. (Whoever writes config can bring a key of their own, and sign with it
# elsewhere; whoever writes policies can give themselves anything. Both are in
# Vault's audit log.) Checked by TestEveryPathUnderEachPolicy.

# The proxy's address, audiences, the ceiling over all roles. It needs sudo, as
# does all that touches the key: a hasty ati/* rule doesn't have that.
path "ati/config" {
  capabilities = ["create", "read", "update", "delete", "sudo"]
}

# What versions of the key there are; a new key at once, which ends all tokens.
path "ati/config/rotate" {
  capabilities = ["read", "update", "sudo"]
}

# The steps of a rotation without downtime. A stage can be dropped again.
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

# What tokens may open, for whom and how long.
path "ati/roles" {
  capabilities = ["list"]
}
path "ati/roles/*" {
  capabilities = ["create", "read", "update", "delete"]
}

# What a role opens, tried without a token.
path "ati/check/*" {
  capabilities = ["read", "update"]
}

# What a value is in the audit log, to search for it there.
path "sys/audit-hash/file" {
  capabilities = ["update"]
}

# What a token that turned up somewhere is, and whether it still passes.
path "ati/validate" {
  capabilities = ["update"]
}
path "ati/inspect" {
  capabilities = ["update"]
}
