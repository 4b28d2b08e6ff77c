"""The Python code of the documents, run as it is, and its output; and what they say about ati-client."""

import contextlib
import inspect
import io
import os
import re
import subprocess
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

import ati
import hvac
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import ati_vault
from test_ati_vault import Case, Stub, root, setUpModule  # setUpModule: unittest calls it

ROOT = Path(__file__).parents[2]
POLICIES = ["ati-orchestrator", "ati-validate", "default"]


def blocks(page):
    """Return the language, the text, and the output of each code block, and whether it is marked for this test."""
    found = re.findall(r"(?ms)^(<!-- run by TestInteropOrchestrators -->\n)?```(sh|python)\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", page)
    return [(language, text, output, marked != "") for marked, language, text, output in found]


class Pages(Case):
    def assert_output(self, want, got):
        self.assertRegex(got, re.compile(r"\A" + re.escape(want).replace("…", "[^\n]*") + r"\Z"))

    def run_shell(self, script, token):
        run = subprocess.run(["bash", "-ec", script], cwd=ROOT, env={**os.environ, "VAULT_TOKEN": token}, capture_output=True, text=True)
        self.assertEqual(run.returncode, 0, run.stderr)
        return run.stdout

    def run_python(self, text, names):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(text, "page", "exec"), names)
        return out.getvalue()

    def issuer(self):
        """Return the keys of an issuer of JWTs, and a token of the orchestrator for Vault."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
        keys = {"keys": [jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)]}
        now = int(time.time())
        claims = {"iss": "https://ci.example.com", "sub": "project:orchestrator", "aud": "vault", "iat": now, "exp": now + 600}
        return pem, keys, jwt.encode(claims, key, "ES256")

    def test_orchestrator(self):
        pem, keys, token = self.issuer()
        contexts = contextlib.ExitStack()
        self.addCleanup(contexts.close)
        work = Path(contexts.enter_context(tempfile.TemporaryDirectory()))
        service_account = work / "token"
        service_account.write_text(token)
        # A Kubernetes login takes the same request, but needs an API server.
        root.sys.enable_auth_method("jwt", path="kubernetes")
        root.write_data("auth/kubernetes/config", data={"jwt_validation_pubkeys": [pem]})
        role = {"role_type": "jwt", "user_claim": "sub", "bound_audiences": "vault", "token_policies": POLICIES[:2]}
        root.write_data("auth/kubernetes/role/ati-orchestrator", data=role)
        issuer = contexts.enter_context(Stub(200, keys))
        contexts.enter_context(mock.patch.dict(os.environ, {"CI_JWT": token}))
        page = (ROOT / "docs/orchestrator.md").read_text()
        for name, to in ("/etc/ati-orchestrator", work), ("/var/run/secrets/vault/token", service_account), ("https://ci.example.com/jwks", issuer.url):
            self.assertIn(name, page)
            page = page.replace(name, str(to))

        names, logins, outputs = {}, [], 0
        for i, (language, text, output, marked) in enumerate(blocks(page)):
            if language == "sh" and (marked or i < 3):  # TestDocs runs the others
                token = os.environ["VAULT_TOKEN"] if text.startswith("go run") else root.token
                got = self.run_shell(text, token)
            elif language == "python":
                self.assertTrue(marked, text)
                got = self.run_python(text, names)
                if "def login(" in text:
                    login = hvac.Client(token="")
                    names["login"](login)
                    logins.append(login.read("auth/token/lookup-self")["data"]["policies"])
            else:
                continue
            if output:
                outputs += 1
                self.assert_output(output, got)
        self.assertEqual(logins, [POLICIES] * 3)
        self.assertEqual(outputs, 5)

        # What the page says about a sealed Vault.
        with mock.patch("time.sleep") as sleep, contextlib.redirect_stdout(io.StringIO()) as out:
            real = names["orchestrator"]._vault.write_data
            with mock.patch.object(names["orchestrator"]._vault, "write_data", side_effect=[hvac.exceptions.VaultDown("Vault is sealed"), real("ati/creds/researcher", data={"agent_id": "sandbox:abc123", "format": "env"})]):
                self.assertEqual(names["provision"]("sandbox:abc123")["ATI_PROXY_URL"], "https://ati.example.com")
            self.assertEqual(sleep.mock_calls, [mock.call(1)])
        self.assertIn("This is the output while Vault is sealed:\n\n```text\n" + out.getvalue() + "```\n", page)

        # The file has another token in each round, and only its owner can read it.
        path, tokens = work / "session_token", []
        with mock.patch("time.sleep", side_effect=lambda _: tokens.append(path.read_text())) as sleep:
            names["keep_token"]("sandbox:abc123", path, iter([True, True, False]).__next__)
        self.assertEqual((sleep.mock_calls, path.stat().st_mode & 0o777, len(set(tokens))), ([mock.call(2400)] * 2, 0o600, 2))
        self.assertEqual([names["orchestrator"].validate_token(t).sub for t in tokens], ["sandbox:abc123"] * 2)

    def test_migrate(self):
        page = (ROOT / "docs/migrate-from-ati-client.md").read_text()
        for language, text, output, marked in blocks(page):
            if language == "python":
                self.assertTrue(marked, text)
                self.assert_output(output, self.run_python(text, {}))
        # The page has each name of ati-client, and each parameter.
        names = set(ati.__all__) | {name for name, _ in inspect.getmembers(ati.AtiOrchestrator, callable) if not name.startswith("_")}
        functions = [ati.AtiOrchestrator, ati.AtiOrchestrator.provision_sandbox, ati.AtiOrchestrator.validate_token, ati.issue_token, ati.validate_token]
        names |= {name for function in functions for name in inspect.signature(function).parameters} - {"self"}
        self.assertEqual([name for name in sorted(names) if f"`{name}`" not in page and f"`{name}(" not in page], [])

    def test_signatures(self):
        # VaultOrchestrator takes each argument that AtiOrchestrator does, in the same place, and with the same default.
        for name in "provision_sandbox", "validate_token":
            want = inspect.signature(getattr(ati.AtiOrchestrator, name)).parameters
            got = inspect.signature(getattr(ati_vault.VaultOrchestrator, name)).parameters
            shape = lambda parameters: [(p.name, p.kind, p.default) for p in parameters if p.name in want]
            self.assertEqual(shape(got.values()), shape(want.values()))
            self.assertLessEqual(set(got) - set(want), {"fetch_skill_content"})
        self.assertLessEqual(set(inspect.signature(ati.AtiOrchestrator).parameters), set(inspect.signature(ati_vault.VaultOrchestrator).parameters))


if __name__ == "__main__":
    unittest.main()
