"""An orchestrator that gets a sandbox's environment from Vault with hvac.

provision_sandbox takes the place of AtiOrchestrator.provision_sandbox of
ati-client 0.1.0: its arguments, beside a Vault client and a role, its answer, and
no signing secret. One thing differs: an empty list or dict, which ati-client takes
for none, is refused by Vault. Otherwise tools=[] would get all that the role has.

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

    What is left out is as the role has it; what is given may only be less.
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
    # Null is refused by Vault: leave out what isn't set.
    answer = vault.write_data(f"ati/creds/{role}", data={k: v for k, v in request.items() if v is not None})
    if not isinstance(answer, dict):  # from a standby whose active node is just going
        raise RuntimeError(f"provision sandbox {agent_id}: Vault answered with nothing; ask again")
    for warning in answer["warnings"] or []:
        print("Vault warns:", warning, file=sys.stderr)
    return answer["data"]


if __name__ == "__main__":
    client = hvac.Client(url=os.environ["VAULT_ADDR"], token=os.environ["VAULT_TOKEN"])
    env = provision_sandbox(client, sys.argv[1], agent_id=sys.argv[2], tools=sys.argv[3:] or None)
    # Here the sandbox would be started with env.
    print(json.dumps(env))
