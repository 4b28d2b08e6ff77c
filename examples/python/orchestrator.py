"""An orchestrator that requests a sandbox's environment variables from Vault with hvac.

provision_sandbox replaces AtiOrchestrator.provision_sandbox of ati-client 0.1.0. It
takes the same arguments after a Vault client and a role, returns the same dict, and
needs no signing secret. It differs from ati-client as follows:

- agent_id must match the role's allowed_agent_ids.
- tools, skills, and extra_scopes must be granted by the role. If all three are omitted,
  the token grants everything that the role does.
- rate can only lower rates that the role defines. If omitted, the role's rates apply.
- ttl_seconds is capped at the role's maximum, with a warning. If omitted, the role's TTL
  applies, not 3600.
- An empty list or dict is rejected; ati-client treats it as omitted.
- Errors are hvac.exceptions, not AtiError.

    pip install hvac
    VAULT_ADDR=... VAULT_TOKEN=... python orchestrator.py researcher sandbox:abc123 web_search

Run by TestInteropOrchestrators.
"""

import json
import os
import sys

import hvac


def provision_sandbox(vault, role, *, agent_id, tools=None, skills=None, extra_scopes=None, ttl_seconds=None, rate=None):
    """Return ATI_PROXY_URL and ATI_SESSION_TOKEN for a sandbox.

    Arguments can only narrow what the role grants. Omitted arguments follow the role.
    """
    request = {
        "agent_id": agent_id,
        "tools": tools,
        "skills": skills,
        "scopes": extra_scopes,
        "ttl": ttl_seconds,
        "rate": rate,
        "format": "env",
    }
    # Omit unset parameters, because the engine rejects null.
    response = vault.write_data(f"ati/creds/{role}", data={k: v for k, v in request.items() if v is not None})
    if not isinstance(response, dict):  # a standby may return this while its active node shuts down
        raise RuntimeError(f"provision sandbox {agent_id}: empty response from Vault; retry")
    for warning in response["warnings"] or []:
        print("warning from Vault:", warning, file=sys.stderr)
    return response["data"]


if __name__ == "__main__":
    client = hvac.Client(
        url=os.environ["VAULT_ADDR"], token=os.environ["VAULT_TOKEN"], namespace=os.environ.get("VAULT_NAMESPACE")
    )
    env = provision_sandbox(client, sys.argv[1], agent_id=sys.argv[2], tools=sys.argv[3:] or None)
    # A real orchestrator would start the sandbox with env here.
    print(json.dumps(env))
