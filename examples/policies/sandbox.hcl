# Sandbox that requests its own token. The role's subject is
# sandbox:{{identity.entity.name}} and it has no allowed_agent_ids, so the sandbox
# cannot choose its identity.
# Checked by TestPolicies_EveryPath.

# Only update: Agent's template and the Kubernetes operators send their parameters in a
# write. A read that has lost its parameters is denied.
path "ati/creds/sandbox" {
  capabilities = ["update"]
}

# Lets Agent renew its Vault token, because its secret ID can be used only once.
path "auth/token/renew-self" {
  capabilities = ["update"]
}
