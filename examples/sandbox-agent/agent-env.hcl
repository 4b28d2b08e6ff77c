# Vault Agent around a process that reads ATI_SESSION_TOKEN only when it starts.
# What it costs: the process is ended and started again at each new token, here
# about every 40 minutes, and loses what it was doing. Where the process can
# read a file, or runs `ati run`, agent.hcl does without.
#
#   VAULT_ADDR=https://vault.example.com ATI_PROXY_URL=https://ati.example.com \
#     vault agent -config=agent-env.hcl
# Not with -log-level=debug: around a process, Agent prints what it renders,
# and so the token (Vault 1.21).
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
