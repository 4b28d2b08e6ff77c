# Guard of a proxy: reads the keys and the revocations, and the API keys of the tools.
# With HS256, anyone who has this policy can sign any token.
# Checked by TestPolicies_EveryPath.

# Like proxy-env, this path returns the secret. Requires sudo.
path "ati/guard" {
  capabilities = ["read", "sudo"]
}

# API keys of the tools, in a KV version 2 secrets engine. Remove this rule if they are
# elsewhere.
path "secret/data/ati-keys" {
  capabilities = ["read"]
}

# Lets the guard renew its Vault token. Otherwise it must log in again, which fails if
# its secret ID can be used only once.
path "auth/token/renew-self" {
  capabilities = ["update"]
}
