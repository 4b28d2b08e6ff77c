#!/usr/bin/env bash
# Run once by the security team. Creates a role whose tokens carry the name of the
# sandbox's identity entity, and a policy that lets a sandbox request tokens only for
# that role. A sandbox cannot choose its identity, because the role has no
# allowed_agent_ids.
#
# Run by TestInteropAppRole.
set -euo pipefail

vault read sys/auth/approle >/dev/null 2>&1 || vault auth enable approle

vault write ati/roles/sandbox \
  tools=web_search \
  subject='sandbox:{{identity.entity.name}}' \
  job_id='{{jti}}' \
  ttl=1h

vault policy write ati-sandbox "$(dirname "$0")/../policies/sandbox.hcl"
