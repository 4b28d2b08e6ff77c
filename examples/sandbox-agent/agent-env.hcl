# Vault Agent as the supervisor of a process that reads ATI_SESSION_TOKEN only at
# startup. Agent restarts the process for every new token, here about every 40 minutes,
# so the process loses its work in progress. If the process can read a file or uses
# `ati run`, use agent.hcl instead, which needs no restart.
#
#   VAULT_ADDR=https://vault.example.com ATI_PROXY_URL=https://ati.example.com \
#     vault agent -config=agent-env.hcl
# Do not use -log-level=debug: as a supervisor, Agent logs what it renders, including
# the token (Vault 1.21).
#
# Run by TestInteropSandboxAgentEnv.

auto_auth {
  method "approle" {
    config = {
      role_id_file_path                   = "/etc/vault-agent/role_id"
      secret_id_file_path                 = "/etc/vault-agent/secret_id"
      remove_secret_id_file_after_reading = true
    }
  }
}

env_template "ATI_SESSION_TOKEN" {
  error_on_missing_key = true
  contents             = "{{ with secret \"ati/creds/sandbox\" (printf \"proxy_url=%s\" (env \"ATI_PROXY_URL\")) }}{{ .Data.token }}{{ end }}"
}

exec {
  command                   = ["/usr/local/bin/agent-process"]
  restart_on_secret_changes = "always"
  restart_stop_signal       = "SIGTERM"
}

template_config {
  static_secret_render_interval = "40m"
}
