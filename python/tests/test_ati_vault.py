"""Tests with a real Vault server, a real ati-client, and the local servers below for faults.

TestInteropOrchestrators starts Vault with the engine at ati, sets VAULT_ADDR, VAULT_TOKEN (of an
orchestrator), ROOT_TOKEN, and ATI_JWT_SECRET, and runs them with each version of ati-client.
"""

import json
import os
import socket
import threading
import unittest
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import ati
import hvac

from ati_vault import VaultOrchestrator, VaultUnavailable

URL = "https://ati.example.com"
SECRET = os.environ["ATI_JWT_SECRET"]
root = hvac.Client(token=os.environ["ROOT_TOKEN"])


def setUpModule():
    role = {"tools": ["web_search", "github:*"], "skills": ["summarize"], "scopes": ["help"], "rate": {"tool:web_search": "30/hour"}}
    role |= {"allowed_agent_ids": ["sandbox:*"], "ttl": "2h", "max_ttl": "4h"}
    root.write_data("ati/roles/researcher", data=role)
    root.write_data("ati/roles/leased", data={**role, "generate_lease": True})


def orchestrator(**arguments):
    return VaultOrchestrator(**{"role": "researcher", **arguments})


def claims_of(env):
    """Validate a token with ati-client, and return its claims."""
    return ati.validate_token(env["ATI_SESSION_TOKEN"], secret=SECRET, issuer="ati-orchestrator")


class Case(unittest.TestCase):
    maxDiff = None

    def assert_fails(self, error, message, function, *arguments, **named):
        """Check the type and the whole message of an error."""
        with self.assertRaises(ati.AtiError) as raised:
            function(*arguments, **named)
        self.assertEqual((type(raised.exception), str(raised.exception)), (error, message))
        return raised.exception


class Provision(Case):
    def test_same_token_as_ati_client(self):
        # Everything but the time and the ID is what ati-client puts into its own token.
        for arguments in (
            {"tools": ["web_search", "tool:github:x"], "skills": ["summarize"], "extra_scopes": ["help"], "ttl_seconds": 7200, "rate": {"tool:web_search": "10/hour"}},
            {"tools": ("web_search",), "skills": [], "extra_scopes": None, "rate": {"tool:web_search": "30/hour"}},
            {"tools": [], "skills": ["skill:summarize"], "rate": {"tool:web_search": "30/hour"}},
        ):
            with self.subTest(arguments):
                env = orchestrator(proxy_url=URL + "/").provision_sandbox(agent_id="sandbox:1", **arguments)
                client = ati.AtiOrchestrator(proxy_url=URL + "/", secret=SECRET)
                wanted = client.provision_sandbox(agent_id="sandbox:1", **arguments)
                self.assertEqual(env, {**wanted, "ATI_SESSION_TOKEN": env["ATI_SESSION_TOKEN"]})
                got, want = claims_of(env), claims_of(wanted)
                self.assertEqual(got.exp - got.iat, want.exp - want.iat)
                self.assertEqual(replace(got, iat=0, exp=0, jti=""), replace(want, iat=0, exp=0, jti=""))
                self.assertEqual(orchestrator().validate_token(env["ATI_SESSION_TOKEN"]), got)

    def test_none_is_everything_that_the_role_grants(self):
        for ttl, want in ({}, 3600), ({"ttl_seconds": None}, 7200), ({"ttl_seconds": 14400}, 14400):
            got = claims_of(orchestrator().provision_sandbox(agent_id="sandbox:1", rate={}, **ttl))
            self.assertEqual(
                got,
                ati.TokenClaims(
                    sub="sandbox:1", aud="ati-proxy", iat=got.iat, exp=got.iat + want, scope="tool:web_search tool:github:* skill:summarize help",
                    iss="ati-orchestrator", jti=got.jti, ati=ati.AtiNamespace(v=1, rate={"tool:web_search": "30/hour"}),
                ),
            )

    def test_empty_lists_do_not_widen_the_token(self):
        for lists, names in ({"tools": []}, "tools"), ({"tools": (), "extra_scopes": iter([])}, "tools and scopes"):
            message = f"{names}: empty; list at least one that the role grants, or pass None to get everything that it grants"
            self.assert_fails(ati.ProvisionError, message, orchestrator().provision_sandbox, agent_id="sandbox:1", **lists)

    def test_string_instead_of_a_list(self):
        one = orchestrator()
        for name, argument in ("tools", "tools"), ("skills", "skills"), ("scopes", "extra_scopes"):
            self.assert_fails(ati.ProvisionError, f"{name} 'help': must be a list of strings", one.provision_sandbox, agent_id="sandbox:1", **{argument: "help"})
        self.assert_fails(ati.ProvisionError, "agent_ids 'sandbox:1': must be a list of strings", one.provision_many, "sandbox:1")

    def test_agent_id_is_required(self):
        message = "agent_id is required: the subject of the token, such as sandbox:1"
        self.assert_fails(ati.ProvisionError, message, orchestrator().provision_sandbox, agent_id=None)

    def test_ttl_beyond_the_maximum(self):
        message = "ttl_seconds 14401: the maximum for role researcher is 14400; request at most that, or raise max_ttl of the role, the config, or the mount"
        for function, agents in (orchestrator().provision_sandbox, {"agent_id": "sandbox:1"}), (orchestrator().provision_many, {"agent_ids": ["sandbox:1"]}):
            with self.assertLogs("ati_vault", "WARNING") as logged:
                self.assert_fails(ati.ProvisionError, message, function, ttl_seconds=14401, **agents)
            self.assertRegex("\n".join(logged.output), r"\AWARNING:ati_vault:ati/\w+/researcher: TTL of \"4h1s\" exceeded [^\n]*\Z")

    def test_audience_and_issuer(self):
        env = orchestrator(default_aud="ati-proxy", default_iss="ati-orchestrator").provision_sandbox(agent_id="sandbox:1")
        self.assertEqual(claims_of(env).aud, "ati-proxy")
        for arguments, message in (
            ({"default_aud": "other"}, "the audience of role researcher is 'ati-proxy', not 'other'; change audience in Vault, or omit default_aud"),
            ({"default_iss": "other"}, "the issuer of role researcher is 'ati-orchestrator', not 'other'; change issuer in Vault, or omit default_iss"),
        ):
            self.assert_fails(ati.ProvisionError, message, orchestrator(**arguments).provision_sandbox, agent_id="sandbox:1")
            self.assert_fails(ati.ProvisionError, message, orchestrator(**arguments).provision_many, ["sandbox:1"])

    def test_proxy_url(self):
        for proxy_url in None, URL + "/":
            self.assertEqual(orchestrator(proxy_url=proxy_url).provision_sandbox(agent_id="sandbox:1")["ATI_PROXY_URL"], URL)
        self.assertEqual(orchestrator(proxy_url=URL + "/").proxy_url, URL)
        one = orchestrator()
        with self.assertRaisesRegex(ati.ProvisionError, "^proxy_url is not known yet; call provision_sandbox first"):
            one.proxy_url
        one.provision_many(["sandbox:1"])
        self.assertEqual(one.proxy_url, URL)
        with self.assertRaisesRegex(ati.ProvisionError, "^ati/creds/researcher: .*https://other.example.com"):
            orchestrator(proxy_url="https://other.example.com").provision_sandbox(agent_id="sandbox:1")

    def test_secret_is_refused(self):
        with self.assertRaises(TypeError) as raised:
            VaultOrchestrator(proxy_url=URL, role="researcher", secret=SECRET)
        self.assertEqual(
            str(raised.exception),
            "VaultOrchestrator does not take secret: Vault has the key. Remove the argument, and remove ATI_JWT_SECRET from this process",
        )

    def test_skills_of_the_proxy(self):
        with Stub(200, [{"name": "summarize", "content": "# Summarize"}]) as proxy:
            root.sys.enable_secrets_engine("vault-plugin-secrets-ati", path="skills")
            self.addCleanup(root.sys.disable_secrets_engine, "skills")
            root.write_data("skills/config", data={"proxy_url": proxy.url})
            root.write_data("skills/roles/researcher", data={"tools": ["web_search"], "skills": ["summarize"], "allowed_agent_ids": ["*"]})
            one = VaultOrchestrator(role="researcher", mount="/skills/", vault=root)
            request = {"agent_id": "sandbox:1", "tools": ["web_search"], "skills": ["skill:summarize"], "fetch_skill_content": True}
            if not hasattr(ati.AtiOrchestrator, "fetch_skills"):
                self.assert_fails(ati.ProvisionError, "fetch_skill_content requires a newer ati-client; upgrade it, or omit fetch_skill_content", one.provision_sandbox, **request)
                return
            env = one.provision_sandbox(**request)
            self.assertEqual(env, {"ATI_PROXY_URL": proxy.url, "ATI_SESSION_TOKEN": env["ATI_SESSION_TOKEN"], "skills": {"summarize": "# Summarize"}})
            self.assertEqual(proxy.requests, [("/skills/resolve", "Bearer " + env["ATI_SESSION_TOKEN"], {"scopes": ["tool:web_search", "skill:summarize"], "include_content": True})])
        with self.assertLogs("ati_vault", "WARNING") as logged:  # the proxy has ended
            self.assertEqual(one.provision_sandbox(**request)["skills"], {})
        self.assertRegex(logged.output[0], f"fetch skills from {proxy.url}: .*refused")


class ProvisionMany(Case):
    def test_one_token_for_each_agent(self):
        ids = [f"sandbox:{i}" for i in range(3)]
        envs = orchestrator().provision_many(iter(ids), tools=["web_search"], ttl_seconds=600, rate={"tool:web_search": "1/hour"})
        self.assertEqual(list(envs), ids)
        for i, agent_id in enumerate(ids):
            got = claims_of(envs[agent_id])
            self.assertEqual(envs[agent_id], {"ATI_PROXY_URL": URL, "ATI_SESSION_TOKEN": envs[agent_id]["ATI_SESSION_TOKEN"]})
            self.assertEqual((got.sub, got.scope, got.exp - got.iat, got.ati.rate), (agent_id, "tool:web_search", 600, {"tool:web_search": "1/hour"}))
            self.assertEqual(got.jti, claims_of(envs[ids[0]]).jti[:-1] + str(i + 1))
        self.assertEqual(orchestrator().provision_many([]), {})

    def test_all_or_nothing(self):
        for role, ids, message in (
            ("researcher", ["sandbox:1", "other"], 'agent_id "other" is not allowed by role "researcher"'),
            ("researcher", ["sandbox:1", "sandbox:1"], "sandbox:1"),
            ("researcher", [f"sandbox:{i}" for i in range(1001)], "1000"),
            ("leased", ["sandbox:1"], 'role "leased" has generate_lease=true, which batch does not support'),
        ):
            with self.subTest(message), self.assertRaisesRegex(ati.ProvisionError, f"^ati/batch/{role}: .*{message}"):
                VaultOrchestrator(role=role, vault=root).provision_many(ids)


class Validate(Case):
    def test_not_valid(self):
        token = orchestrator().provision_sandbox(agent_id="sandbox:1")["ATI_SESSION_TOKEN"]
        ours = dict(secret=SECRET, sub="sandbox:1", scope="tool:x")
        for name, token, arguments, settings, message in (
            ("expired", ati.issue_token(**ours, ttl_seconds=-100), {}, {}, "expired"),
            ("expired, without leeway", ati.issue_token(**ours, ttl_seconds=-2), {"leeway": 0}, {}, "expired"),
            ("another key", ati.issue_token(**{**ours, "secret": "00" * 32}), {}, {}, "key"),
            ("another audience", ati.issue_token(**ours, aud="other"), {}, {}, "audience"),
            ("default_aud", token, {}, {"default_aud": "other"}, "audience"),
            ("issuer", token, {"issuer": "other"}, {}, "issuer"),
            ("default_iss", token, {}, {"default_iss": "other"}, "issuer"),
            ("no issuer", ati.issue_token(**ours, iss=None), {}, {}, "issuer"),
            ("junk", "junk", {}, {}, "."),
            ("empty", "", {}, {}, "^ati/validate: token is empty"),
            ("leeway", token, {"leeway": 61}, {}, "leeway 1m1s: must be at most 1m0s"),
        ):
            with self.subTest(name), self.assertRaisesRegex(ati.TokenError, message):
                orchestrator(**settings).validate_token(token, **arguments)

    def test_valid(self):
        token = ati.issue_token(secret=SECRET, sub="x", scope="", ttl_seconds=-10)  # within the leeway
        self.assertEqual(orchestrator().validate_token(token), ati.validate_token(token, secret=SECRET))


class Revoke(Case):
    def test_revoke(self):
        one = orchestrator()
        tokens = one.provision_many(["sandbox:ends", "sandbox:stays"])
        with self.assertLogs("ati_vault", "WARNING") as logged:
            revoked = one.revoke(agent_id="sandbox:ends")
        self.assertEqual(logged.output, [
            "WARNING:ati_vault:ati/revoke/researcher: The agent can get new tokens. If it should not, first remove its login or disable its role, and then revoke it.",
            "WARNING:ati_vault:ati/revoke/researcher: This mount has guarded=false: proxies without a guard accept revoked tokens until they expire.",
        ])
        # Without kept_until, because the key was imported.
        self.assertEqual(revoked, {"agent_id": "sandbox:ends", "lease": False, "revoked_at": revoked["revoked_at"]})
        with self.assertRaisesRegex(ati.TokenError, f"^revoked at {revoked['revoked_at']}"):
            one.validate_token(tokens["sandbox:ends"]["ATI_SESSION_TOKEN"])
        one.validate_token(tokens["sandbox:stays"]["ATI_SESSION_TOKEN"])
        one.validate_token(one.provision_sandbox(agent_id="sandbox:ends")["ATI_SESSION_TOKEN"])  # a later token
        with self.assertRaisesRegex(ati.ProvisionError, 'ati/revoke/researcher: agent_id "other" is not allowed by role "researcher"'):
            one.revoke(agent_id="other")


class Errors(Case):
    def test_rejected(self):
        for role, mount, arguments, message in (
            ("researcher", "ati", {"tools": ["shell"]}, 'ati/creds/researcher: scope "tool:shell" is not granted by role "researcher"'),
            ("other", "ati", {}, "ati/creds/other: permission denied; the Vault token must not have expired, and its policy must allow update on ati/creds/other"),
        ):
            self.assert_fails(ati.ProvisionError, message, VaultOrchestrator(role=role, mount=mount).provision_sandbox, agent_id="sandbox:1", **arguments)
        for role, mount, message in ("absent", "ati", "ati/creds/absent: .*absent"), ("x", "absent", "absent/creds/x: .*route entry not found; check mount, role, and namespace"):
            with self.assertRaisesRegex(ati.ProvisionError, message):
                VaultOrchestrator(role=role, mount=mount, vault=root).provision_sandbox(agent_id="sandbox:1")

    def test_login(self):
        logins = []

        def login(vault):
            logins.append(vault.token)
            vault.token = os.environ["VAULT_TOKEN"]

        one = orchestrator(vault=hvac.Client(token="invalid"), login=login)
        for _ in range(2):
            one.provision_sandbox(agent_id="sandbox:1")
        self.assertEqual(logins, ["invalid"])
        one = orchestrator(vault=hvac.Client(token=""), login=login)
        one.provision_sandbox(agent_id="sandbox:1")
        self.assertEqual(logins, ["invalid", ""])
        message = "ati/creds/other: permission denied; the Vault token must not have expired, and its policy must allow update on ati/creds/other"
        self.assert_fails(ati.ProvisionError, message, orchestrator(role="other", login=login).provision_sandbox, agent_id="sandbox:1")
        self.assertEqual(len(logins), 3)
        with self.assertRaisesRegex(ati.ProvisionError, "^log in to Vault: "):
            login = lambda vault: vault.auth.approle.login("no-role", "no-secret")
            orchestrator(vault=hvac.Client(token="invalid"), login=login).provision_sandbox(agent_id="sandbox:1")

    def test_token_with_a_line_break_is_not_shown(self):
        for token in "hvs.secret\n", "hvs.secret\u2013":
            message = "ati/creds/researcher: the Vault token has a line break or a character that is not allowed"
            error = self.assert_fails(ati.ProvisionError, message, orchestrator(vault=hvac.Client(token=token)).provision_sandbox, agent_id="sandbox:1")
            self.assertTrue(error.__suppress_context__)

    def test_unavailable(self):
        for status, body, message in (
            (204, None, "empty response from Vault; retry"),
            (200, None, "empty response from Vault; retry"),
            (429, {"errors": ["rate limit quota exceeded"]}, "rate limit quota exceeded; retry"),
            (500, {"errors": ["2 errors occurred:\n\t* no storage\n\t* no plugin\n\n"]}, "no storage, no plugin; retry"),
            (502, None, "BadGateway; retry"),
            (503, {"errors": ["Vault is sealed"]}, "Vault is sealed; retry"),
            (504, None, "UnexpectedError; retry"),
        ):
            with self.subTest(status), Stub(status, body) as vault:
                one = orchestrator(vault=hvac.Client(url=vault.url, token="x"))
                for path, function, arguments in (
                    ("creds/researcher", one.provision_sandbox, {"agent_id": "sandbox:1"}),
                    ("batch/researcher", one.provision_many, {"agent_ids": ["sandbox:1"]}),
                    ("validate", one.validate_token, {"token": "x"}),
                    ("revoke/researcher", one.revoke, {"agent_id": "sandbox:1"}),
                ):
                    self.assert_fails(VaultUnavailable, f"ati/{path}: {message}", function, **arguments)
        with self.assertRaisesRegex(VaultUnavailable, "^ati/creds/researcher: .*Connection refused.*; check VAULT_ADDR, or retry$"):
            orchestrator(vault=hvac.Client(url=vault.url, token="x")).provision_sandbox(agent_id="sandbox:1")
        with socket.create_server(("127.0.0.1", 0)) as silent:
            vault = hvac.Client(url=f"http://127.0.0.1:{silent.getsockname()[1]}", token="x", timeout=0.1)
            with self.assertRaisesRegex(VaultUnavailable, "^ati/creds/researcher: .*Read timed out.*; check VAULT_ADDR, or retry$"):
                orchestrator(vault=vault).provision_sandbox(agent_id="sandbox:1")
        with self.assertRaisesRegex(ati.ProvisionError, "^ati/creds/researcher: .*No connection adapters") as raised:
            orchestrator(vault=hvac.Client(url="ati.example.com:8200", token="x")).provision_sandbox(agent_id="sandbox:1")
        self.assertNotIsInstance(raised.exception, VaultUnavailable)


class Stub(HTTPServer):
    """A server with one response for all requests, which it keeps."""

    def __init__(self, status, body):
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.body, self.requests = status, b"" if body is None else json.dumps(body).encode(), []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "null")
        self.server.requests.append((self.path, self.headers["Authorization"], body))
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json" if self.server.body else "text/plain")
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_GET = do_POST

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    unittest.main()
