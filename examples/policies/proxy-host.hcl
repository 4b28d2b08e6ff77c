# Proxy host: reads the proxy's environment, which contains the key, and nothing else.
# With HS256, anyone who has this policy can sign any token.
# Checked by TestPolicies_EveryPath, used by TestInteropProxyAgent.

# Returns the secret. Requires sudo.
path "ati/proxy-env" {
  capabilities = ["read", "sudo"]
}

# The key of one version, for a zero-downtime rotation.
path "ati/proxy-env/*" {
  capabilities = ["read", "sudo"]
}

# Lets Agent renew its Vault token. Otherwise it must log in again, which fails if its
# secret ID can be used only once, and then it does not receive a new key.
path "auth/token/renew-self" {
  capabilities = ["update"]
}
