# Orchestrator: requests tokens for the sandboxes that it starts, only with its own
# roles (here, researcher). Do not use a glob, which would include roles added later.
# Checked by TestPolicies_EveryPath.

# update, for parameters in the request body. Query parameters appear in the audit log.
path "ati/creds/researcher" {
  capabilities = ["read", "update"]
}

# Tokens for many sandboxes in one request. A separate path, so that it cannot be used
# to bypass a rule on agent_id above.
path "ati/batch/researcher" {
  capabilities = ["update"]
}
