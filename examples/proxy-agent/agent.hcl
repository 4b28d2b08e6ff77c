# Vault Agent on the proxy's host: runs the ATI proxy, through the guard, with
# its environment from Vault, and starts it again when the key changes there.
#
#   VAULT_ADDR=https://vault.example.com vault agent -config=agent.hcl
#
# To be fitted to this host: the address and the port below, and the proxy's
# directory, with the manifests of its tools (ati init makes one). --env-keys: the
# keys of the tools' APIs are in the environment, as ATI_KEY_….
# The policy of this host is ../policies/proxy-host.hcl. Its secret id has to be one that
# can be used again, or Agent could not be started again: bind it, and the Vault token,
# to this host's address (secret_id_bound_cidrs, token_bound_cidrs).
# Until Agent has noticed a new key, up to static_secret_render_interval, the
# proxy has the old one.
# With ATI_PROXY_ENV=ati/proxy-env/<version> the proxy keeps the key of that
# version, for a rotation without downtime.
# Not with -log-level=debug: around a process, Agent prints what it renders,
# and so the secret (Vault 1.21).
#
# Run by TestInteropProxyAgent, TestInteropRotateAtOnce and TestRotation.

auto_auth {
  method "approle" {
    config = {
      role_id_file_path                   = "/etc/vault-agent/role_id"
      secret_id_file_path                 = "/etc/vault-agent/secret_id"
      remove_secret_id_file_after_reading = false
    }
  }
}

# Vault's answer has one of these two, by the key's algorithm. The other variable
# is empty then, and the guard drops it.
env_template "ATI_JWT_SECRET" {
  error_on_missing_key = true
  contents             = "{{ with secret (or (env \"ATI_PROXY_ENV\") \"ati/proxy-env\") }}{{ with index .Data \"ATI_JWT_SECRET\" }}{{ . }}{{ end }}{{ end }}"
}

env_template "ATI_JWT_PUBLIC_KEY_PEM" {
  error_on_missing_key = true
  contents             = "{{ with secret (or (env \"ATI_PROXY_ENV\") \"ati/proxy-env\") }}{{ with index .Data \"public_key\" }}{{ . }}{{ end }}{{ end }}"
}

# With error_on_missing_key: without it a key that is missing from Vault's answer
# becomes "<no value>".
env_template "ATI_JWT_ACCEPTED_AUDIENCES" {
  error_on_missing_key = true
  contents             = "{{ with secret (or (env \"ATI_PROXY_ENV\") \"ati/proxy-env\") }}{{ .Data.ATI_JWT_ACCEPTED_AUDIENCES }}{{ end }}"
}

# Empty where config has an empty issuer: proxy-env has none then, and the guard drops
# the variable.
env_template "ATI_JWT_ISSUER" {
  error_on_missing_key = true
  contents             = "{{ with secret (or (env \"ATI_PROXY_ENV\") \"ati/proxy-env\") }}{{ with index .Data \"ATI_JWT_ISSUER\" }}{{ . }}{{ end }}{{ end }}"
}

exec {
  command                   = ["/usr/local/bin/ati-proxy-guard", "--bind", "127.0.0.1", "--port", "8090", "--ati-dir", "/var/lib/ati", "--env-keys"]
  restart_on_secret_changes = "always"
  restart_stop_signal       = "SIGTERM"
}

template_config {
  static_secret_render_interval = "1m"
}
