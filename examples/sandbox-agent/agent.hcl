# Vault Agent in the sandbox: renews the token in /run/ati/session_token, which
# `ati run` reads for every call. No process has to be restarted.
#
#   VAULT_ADDR=https://vault.example.com ATI_PROXY_URL=https://ati.example.com \
#     vault agent -config=agent.hcl
# Agent uses its secret ID once, at startup, and removes the file. Every start needs a
# new one; see ../approle/add-sandbox.sh.
#
# Run by TestInteropSandboxAgent.

auto_auth {
  method "approle" {
    config = {
      role_id_file_path                   = "/etc/vault-agent/role_id"
      secret_id_file_path                 = "/etc/vault-agent/secret_id"
      remove_secret_id_file_after_reading = true
    }
  }
}

template {
  destination          = "/run/ati/session_token"
  perms                = "0600"
  error_on_missing_key = true

  # The parameter is sent in a write request: with a query string in the path, Agent
  # gives all templates that read this path the same response. proxy_url pins the token
  # to this sandbox's proxy. If the mount has no key for that proxy, the request fails
  # instead of returning a token that the proxy would reject.
  contents = <<-TEMPLATE
    {{- with secret "ati/creds/sandbox" (printf "proxy_url=%s" (env "ATI_PROXY_URL")) -}}
    {{ .Data.token }}
    {{- end -}}
  TEMPLATE
}

template_config {
  # Agent requests a secret without a lease again after this interval, regardless of
  # the token's TTL. Set it to about 70% of the TTL (here, 1h).
  static_secret_render_interval = "40m"
  exit_on_retry_failure         = false
}
