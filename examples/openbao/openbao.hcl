# OpenBao server for production, ready after its first start: TLS, raft storage, automatic
# unsealing, an audit log, the engine with its config, a role, the ready policies, and
# logins for an orchestrator and an administrator. Needs OpenBao 2.7 or later.
# docs/install-production.md has the steps.
# Run by TestDocsOpenBao.

api_addr     = "https://127.0.0.1:8200"
cluster_addr = "https://127.0.0.1:8201"

listener "tcp" {
  address       = "127.0.0.1:8200"
  tls_cert_file = "/etc/openbao/tls/cert.pem"
  tls_key_file  = "/etc/openbao/tls/key.pem"

  # ati/batch takes 1,000 agent IDs; the default is 1,000 strings per request. The memory
  # limit bounds what hostile JSON can use.
  max_request_json_strings = 1100
  max_request_json_memory  = 2097152
}

storage "raft" {
  path    = "/opt/openbao/data"
  node_id = "one"
}

# 32 random bytes. Storage cannot be decrypted without this file, so keep a copy elsewhere.
# A KMS or HSM protects the key better; replace this stanza if you have one.
seal "static" {
  current_key_id = "1"
  current_key    = "file:///etc/openbao/unseal.key"
}

# The policies refer to this device by its path, file.
audit "file" "file" {
  options {
    file_path = "/var/log/openbao/audit.log"
  }
}

plugin_directory     = "/etc/openbao/plugins"
plugin_auto_register = true

plugin "secret" "vault-plugin-secrets-ati" {
  command   = "vault-plugin-secrets-ati-v0.1.0"
  version   = "v0.1.0"
  sha256sum = "PLUGIN_SHA256"
}

# OpenBao sends the requests below on its first start only, as root, and then revokes the
# root token. Later changes here have no effect.

initialize "policies" {
  request "admin" {
    operation = "update"
    path      = "sys/policies/acl/ati-admin"
    data      = { policy = { eval_type = "string", eval_source = "file", path = "/etc/openbao/policies/admin.hcl" } }
  }
  request "security-auditor" {
    operation = "update"
    path      = "sys/policies/acl/ati-security-auditor"
    data      = { policy = { eval_type = "string", eval_source = "file", path = "/etc/openbao/policies/security-auditor.hcl" } }
  }
  request "orchestrator" {
    operation = "update"
    path      = "sys/policies/acl/ati-orchestrator"
    data      = { policy = { eval_type = "string", eval_source = "file", path = "/etc/openbao/policies/orchestrator.hcl" } }
  }
  request "sandbox" {
    operation = "update"
    path      = "sys/policies/acl/ati-sandbox"
    data      = { policy = { eval_type = "string", eval_source = "file", path = "/etc/openbao/policies/sandbox.hcl" } }
  }
  request "proxy-host" {
    operation = "update"
    path      = "sys/policies/acl/ati-proxy-host"
    data      = { policy = { eval_type = "string", eval_source = "file", path = "/etc/openbao/policies/proxy-host.hcl" } }
  }
  request "proxy-guard" {
    operation = "update"
    path      = "sys/policies/acl/ati-proxy-guard"
    data      = { policy = { eval_type = "string", eval_source = "file", path = "/etc/openbao/policies/proxy-guard.hcl" } }
  }
  # Manages the server: policies, logins, mounts, and plugins.
  request "server-admin" {
    operation = "update"
    path      = "sys/policies/acl/server-admin"
    data = {
      policy = <<-POLICY
        path "sys/*" {
          capabilities = ["create", "read", "update", "delete", "list", "sudo"]
        }
        path "auth/*" {
          capabilities = ["create", "read", "update", "delete", "list", "sudo"]
        }
        path "identity/*" {
          capabilities = ["create", "read", "update", "delete", "list"]
        }
      POLICY
    }
  }
}

initialize "engine" {
  request "mount" {
    operation = "update"
    path      = "sys/mounts/ati"
    data      = { type = "vault-plugin-secrets-ati" }
  }
  request "config" {
    operation = "update"
    path      = "ati/config"
    data = {
      proxy_url = "https://ati.example.com"
      # Omit secret to let the engine generate it.
      secret = { eval_type = "string", eval_source = "file", path = "/etc/openbao/secrets/ati-secret" }
    }
  }
  request "role" {
    operation = "update"
    path      = "ati/roles/researcher"
    data = {
      tools             = ["web_search", "arxiv:search"]
      skills            = ["summarize"]
      rate              = { "tool:web_search" = "30/hour" }
      allowed_agent_ids = ["sandbox:*"]
      ttl               = "1h"
      max_ttl           = "4h"
    }
  }
}

initialize "logins" {
  # The orchestrator. Its role ID is orchestrator.
  request "approle" {
    operation = "update"
    path      = "sys/auth/approle"
    data      = { type = "approle" }
  }
  request "orchestrator" {
    operation = "update"
    path      = "auth/approle/role/orchestrator"
    data = {
      role_id                 = "orchestrator"
      token_policies          = ["ati-orchestrator"]
      token_no_default_policy = true
      token_ttl               = "1h"
    }
  }
  request "orchestrator-secret-id" {
    operation = "update"
    path      = "auth/approle/role/orchestrator/custom-secret-id"
    data      = { secret_id = { eval_type = "string", eval_source = "file", path = "/etc/openbao/secrets/orchestrator-secret-id" } }
  }

  # The administrator. Without this login, no one could change the server. Replace it with
  # your organization's own, such as OIDC.
  request "userpass" {
    operation = "update"
    path      = "sys/auth/userpass"
    data      = { type = "userpass" }
  }
  request "administrator" {
    operation = "update"
    path      = "auth/userpass/users/admin"
    data = {
      password       = { eval_type = "string", eval_source = "file", path = "/etc/openbao/secrets/admin-password" }
      token_policies = ["ati-admin", "server-admin"]
    }
  }
}
