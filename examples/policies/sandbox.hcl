# Sandbox that requests its own token. The role's subject is
# sandbox:{{identity.entity.name}} and it has no allowed_agent_ids, so the sandbox
# cannot choose its identity.
# Checked by TestPolicies_EveryPath.

# update, because Agent's template sends its parameters in a write request.
path "ati/creds/sandbox" {
  capabilities = ["read", "update"]
}

# Lets Agent renew its Vault token, because its secret ID can be used only once.
path "auth/token/renew-self" {
  capabilities = ["update"]
}
