# What the proxy's host may do in Vault: read the proxy's environment, with the
# key in it, and nothing else. Used by TestInteropProxyAgent.
path "ati/proxy-env" {
  capabilities = ["read", "sudo"]
}
