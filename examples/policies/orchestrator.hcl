# Orchestrator: requests tokens for the sandboxes that it starts, only with its own
# roles (here, researcher). Do not use a glob, which would include roles added later.
# Checked by TestPolicies_EveryPath.

# Only update, with the parameters in the body. A read without parameters returns a token
# with everything that the role grants, and Vault ignores the body of a read. Query
# parameters also appear in the audit log.
path "ati/creds/researcher" {
  capabilities = ["update"]
}

# Tokens for many sandboxes in one request. A separate path, so that it cannot be used
# to bypass a rule on agent_id above.
path "ati/batch/researcher" {
  capabilities = ["update"]
}

# Revoke the tokens of a sandbox that has ended, of those that the role allows.
path "ati/revoke/researcher" {
  capabilities = ["update"]
}
