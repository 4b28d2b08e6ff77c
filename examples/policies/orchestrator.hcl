# An orchestrator: mints tokens of the roles that are its own, here researcher,
# for the sandboxes that it starts. No glob: a role that somebody adds later is
# not its own. Checked by TestEveryPathUnderEachPolicy.

# update, for parameters in a body: those in a query stand in the audit log.
path "ati/creds/researcher" {
  capabilities = ["read", "update"]
}

# Tokens for many sandboxes at once. It is a path of its own, so that leaving it
# out, or a rule on agent_id above, isn't stepped around.
path "ati/batch/researcher" {
  capabilities = ["update"]
}
