# Mount, config, roles, and policies with the hashicorp/vault provider.
#
# Not run by a test, and not tried with Terraform. Register the plugin first. The token
# that applies this configuration needs the sudo capability on ati/config.

terraform {
  required_providers {
    vault = {
      source = "hashicorp/vault"
    }
  }
}

variable "proxy_url" {
  description = "URL of the ATI proxy."
  type        = string

  validation {
    condition     = !endswith(var.proxy_url, "/")
    error_message = "The proxy URL must not end with a slash: the engine removes it, so every plan would show a change."
  }
}

resource "vault_mount" "ati" {
  path        = "ati"
  type        = "vault-plugin-secrets-ati"
  description = "ATI session tokens"

  lifecycle {
    prevent_destroy = true # deleting the mount deletes all keys and roles
  }
}

# Without a secret, Vault generates one, which never enters Terraform's state; the proxy
# host reads it from ati/proxy-env. Applying the configuration again does not change the
# key. Do not rotate keys with Terraform. If every proxy runs behind ati-guard, you can add
# guarded = true and rotation_period = "720h", with which Vault rotates the key. After a rotation to a different proxy, change
# proxy_url here. Otherwise the next apply issues tokens for the old proxy, or fails
# while Vault still has the old proxy's key version.
resource "vault_generic_endpoint" "config" {
  path                 = "${vault_mount.ati.path}/config"
  ignore_absent_fields = true
  disable_delete       = true # deleting the config deletes the key

  data_json = jsonencode({
    proxy_url = var.proxy_url
    max_ttl   = 14400
  })
}

# A field that is removed from data_json keeps its value in the role. To clear it, set it
# to an empty value.
resource "vault_generic_endpoint" "researcher" {
  path                 = "${vault_mount.ati.path}/roles/researcher"
  ignore_absent_fields = true
  depends_on           = [vault_generic_endpoint.config]

  data_json = jsonencode({
    tools             = ["web_search", "arxiv:search"]
    skills            = ["summarize"]
    rate              = { "tool:web_search" = "30/hour" }
    ttl               = 3600
    max_ttl           = 14400
    allowed_agent_ids = ["sandbox:*"]
  })
}

resource "vault_policy" "orchestrator" {
  name   = "ati-orchestrator"
  policy = <<-HCL
    path "${vault_mount.ati.path}/creds/researcher" { capabilities = ["update"] }
    path "${vault_mount.ati.path}/batch/researcher" { capabilities = ["update"] }
  HCL
}

resource "vault_policy" "proxy_host" {
  name   = "ati-proxy-host"
  policy = <<-HCL
    path "${vault_mount.ati.path}/proxy-env" { capabilities = ["read", "sudo"] }
    path "${vault_mount.ati.path}/proxy-env/*" { capabilities = ["read", "sudo"] }
    path "auth/token/renew-self"              { capabilities = ["update"] }
  HCL
}
