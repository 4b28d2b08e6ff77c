# Vault Agent in the sandbox: keeps /run/ati/session_token fresh, where `ati run`
# reads it at every call. The agent of the sandbox is never restarted for it.
#
#   VAULT_ADDR=https://vault.example.com ATI_PROXY_URL=https://ati.example.com \
#     vault agent -config=agent.hcl
# Its secret id is used up by the start, and its file removed: each start needs a new
# one (../approle/add-sandbox.sh says how it is made).
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

  # The parameter stands in the write form: with a query string in the path,
  # Agent gives every template that asks for this path the same answer.
  # proxy_url pins the token to the proxy that this sandbox was started with:
  # if the mount has no key for it, there is an error in place of a token that
  # the proxy would refuse.
  contents = <<-TEMPLATE
    {{- with secret "ati/creds/sandbox" (printf "proxy_url=%s" (env "ATI_PROXY_URL")) -}}
    {{ .Data.token }}
    {{- end -}}
  TEMPLATE
}

template_config {
  # A read without a lease is fetched again after this time, whatever the
  # token's TTL: about 0.7 of it, here of an hour.
  static_secret_render_interval = "40m"
  exit_on_retry_failure         = false
}
