# Vault Agent on the proxy host, for a proxy without ati-guard: starts the ATI proxy with
# its environment from Vault, and restarts it when the key in Vault changes. For HS256.
#
#   VAULT_ADDR=https://vault.example.com ATI_DIR=/var/lib/ati vault agent -config=agent.hcl
#
# Change the address and port below, and the proxy's directory here and in ATI_DIR, which
# contains the manifests of its tools (ati init creates one). --env-keys reads the tools'
# API keys from the environment (ATI_KEY_…).
# The policy for this host is ../policies/proxy-host.hcl. Use a reusable secret ID, so
# that Agent can be restarted, and bind it and the Vault token to the host's address
# (secret_id_bound_cidrs, token_bound_cidrs).
# After a rotation, the proxy keeps the old key until Agent notices the new one, which
# takes up to static_secret_render_interval.
# For a zero-downtime rotation, set ATI_PROXY_ENV=ati/proxy-env/<version> to keep the
# proxy on that key version.
# Do not use -log-level=debug: as a supervisor, Agent logs what it renders, including
# the secret (Vault 1.21).
#
# Run by TestInteropProxyAgent, TestInteropRotateImmediately and TestRotation.

auto_auth {
  method "approle" {
    config = {
      role_id_file_path                   = "/etc/vault-agent/role_id"
      secret_id_file_path                 = "/etc/vault-agent/secret_id"
      remove_secret_id_file_after_reading = false
    }
  }
}

# With a malformed secret, the proxy accepts requests without a token, and with an empty
# one, tokens that anyone can sign. So Agent must not start the proxy if the response has no
# secret, as with ES256. Without error_on_missing_key, it would render "<no value>".
env_template "ATI_JWT_SECRET" {
  error_on_missing_key = true
  contents             = "{{ with secret (or (env \"ATI_PROXY_ENV\") \"ati/proxy-env\") }}{{ .Data.ATI_JWT_SECRET }}{{ end }}"
}

# ATI before 0.7.12 knows only the first of these two, and later versions use the second.
env_template "ATI_JWT_AUDIENCE" {
  error_on_missing_key = true
  contents             = "{{ with secret (or (env \"ATI_PROXY_ENV\") \"ati/proxy-env\") }}{{ .Data.ATI_JWT_AUDIENCE }}{{ end }}"
}

env_template "ATI_JWT_ACCEPTED_AUDIENCES" {
  error_on_missing_key = true
  contents             = "{{ with secret (or (env \"ATI_PROXY_ENV\") \"ati/proxy-env\") }}{{ .Data.ATI_JWT_ACCEPTED_AUDIENCES }}{{ end }}"
}

# If the issuer in the config is empty, proxy-env does not return it. The variable is then
# empty, and the proxy rejects tokens that have an issuer.
env_template "ATI_JWT_ISSUER" {
  error_on_missing_key = true
  contents             = "{{ with secret (or (env \"ATI_PROXY_ENV\") \"ati/proxy-env\") }}{{ with index .Data \"ATI_JWT_ISSUER\" }}{{ . }}{{ end }}{{ end }}"
}

# env removes a variable that has precedence over the secret. If it names a file that the
# proxy cannot read, the proxy accepts requests without a token.
exec {
  command                   = ["/usr/bin/env", "-u", "ATI_JWT_PUBLIC_KEY", "/usr/local/bin/ati", "proxy", "--bind", "127.0.0.1", "--port", "8090", "--ati-dir", "/var/lib/ati", "--env-keys"]
  restart_on_secret_changes = "always"
  restart_stop_signal       = "SIGTERM"
}

template_config {
  static_secret_render_interval = "1m"
}
