# Mount, config, roles and policies with the hashicorp/vault provider.
#
# Not run by a test: Terraform was not tried. The plugin must be registered already,
# and the token that applies this needs the sudo capability on ati/config.

terraform {
  required_providers {
    vault = {
      source = "hashicorp/vault"
    }
  }
}

variable "proxy_url" {
  description = "Address of the ATI proxy."
  type        = string

  validation {
    condition     = !endswith(var.proxy_url, "/")
    error_message = "Without a slash at the end: Vault cuts it, and each plan would show a difference."
  }
}

resource "vault_mount" "ati" {
  path        = "ati"
  type        = "vault-plugin-secrets-ati"
  description = "ATI session tokens"

  lifecycle {
    prevent_destroy = true # it would forget every key and role
  }
}

# Without a secret, Vault generates one, and Terraform's state never has it: the
# proxy's host reads it from ati/proxy-env. Applied again, it changes nothing.
# Rotations are not Terraform's: after one with another proxy, change proxy_url
# here, or the next apply sends tokens to the old one. (While Vault has the old
# proxy's version, it refuses that.)
resource "vault_generic_endpoint" "config" {
  path                 = "${vault_mount.ati.path}/config"
  ignore_absent_fields = true
  disable_delete       = true # a deletion would forget the key, as one of the mount does

  data_json = jsonencode({
    proxy_url = var.proxy_url
    max_ttl   = 14400
  })
}

# A role keeps what data_json no longer names: to take something away, give it empty.
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
    path "${vault_mount.ati.path}/creds/researcher" { capabilities = ["read", "update"] }
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
