# The proxy's host: reads the proxy's environment, with the key in it, and
# nothing else. Whoever has this policy can sign any token, with HS256.
# Checked by TestEveryPathUnderEachPolicy, used by TestInteropProxyAgent.

# The one place where the key leaves Vault. It needs sudo.
path "ati/proxy-env" {
  capabilities = ["read", "sudo"]
}

# The key of one version, for a rotation without downtime.
path "ati/proxy-env/*" {
  capabilities = ["read", "sudo"]
}

# Agent renews its Vault token: without this it has to log in again, and where
# its secret id works once, it would no longer see a new key.
path "auth/token/renew-self" {
  capabilities = ["update"]
}
