# A sandbox that fetches its own token. Its role's subject is
# sandbox:{{identity.entity.name}} and its role has no allowed_agent_ids, so that
# it can't choose who it is. Checked by TestEveryPathUnderEachPolicy.

# update, since Agent's template gives its parameters in the write form.
path "ati/creds/sandbox" {
  capabilities = ["read", "update"]
}

# Agent renews its Vault token: the secret id that it logged in with works once.
path "auth/token/renew-self" {
  capabilities = ["update"]
}
