"""Provision ATI sandboxes with session tokens from HashiCorp Vault or OpenBao.

VaultOrchestrator replaces ati.AtiOrchestrator. Vault has the signing key, and a role in
Vault limits what the tokens grant:

    orchestrator = VaultOrchestrator(role="researcher")
    env = orchestrator.provision_sandbox(agent_id="sandbox:abc123", tools=["web_search"])

Warnings from Vault are logged by the logger "ati_vault".
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import hvac
import requests
from ati import AtiError, AtiNamespace, AtiOrchestrator, ProvisionError, TokenClaims, TokenError, inspect_token

__all__ = ["VaultOrchestrator", "VaultUnavailable"]

_log = logging.getLogger("ati_vault")

# The errors of hvac that the caller cannot fix: 429, 5xx, and statuses that hvac does not know.
_UNAVAILABLE = (
    hvac.exceptions.RateLimitExceeded,
    hvac.exceptions.InternalServerError,
    hvac.exceptions.VaultNotInitialized,
    hvac.exceptions.BadGateway,
    hvac.exceptions.VaultDown,
    hvac.exceptions.UnexpectedError,
)


class VaultUnavailable(ProvisionError):
    """Vault cannot be reached, is sealed, limits requests, or failed. The request can be retried."""


class VaultOrchestrator(AtiOrchestrator):
    """Replaces AtiOrchestrator, with tokens from ati/creds/<role> in Vault.

    Args:
        role: Name of the role in Vault. It limits tools, skills, scopes, rates, TTL, and agents.
        proxy_url: If set, tokens are for this proxy, and a request fails if the mount has no key
            for it. By default, Vault returns the URL of the mount's proxy.
        vault: Client for Vault. By default, it is configured by VAULT_ADDR, VAULT_TOKEN or
            ~/.vault-token, VAULT_NAMESPACE, and VAULT_CACERT.
        login: Function that logs the client in, such as
            ``lambda vault: vault.auth.approle.login(role_id, secret_id)``. It is called when
            the client has no token, and when Vault rejects the token.
        mount: Path of the secrets engine.
        default_aud, default_iss: If set, a token with another audience or issuer is an error.
            Vault sets both claims: see audience of the role, and audience and issuer of the config.
        secret: Not accepted, because Vault has the key.

    Failed requests raise ProvisionError, of which VaultUnavailable can be retried.
    """

    def __init__(
        self,
        *,
        role: str,
        proxy_url: str | None = None,
        vault: hvac.Client | None = None,
        login: Callable[[hvac.Client], object] | None = None,
        mount: str = "ati",
        default_aud: str | None = None,
        default_iss: str | None = None,
        secret: None = None,
    ) -> None:
        if secret is not None:
            raise TypeError(
                "VaultOrchestrator does not take secret: Vault has the key. Remove the argument, "
                "and remove ATI_JWT_SECRET from this process"
            )
        self._role = role
        self._proxy = proxy_url and proxy_url.rstrip("/")
        self._latest_proxy: str | None = None
        self._vault = vault or hvac.Client(namespace=os.environ.get("VAULT_NAMESPACE"))
        self._login = login
        self._mount = mount.strip("/")
        # AtiOrchestrator has defaults for both.
        self.default_aud = default_aud  # type: ignore[assignment]
        self.default_iss = default_iss  # type: ignore[assignment]

    @property
    def proxy_url(self) -> str:  # type: ignore[override] # an attribute of AtiOrchestrator
        """URL of the proxy: the argument, or else the URL in the latest response from Vault."""
        url = self._proxy or self._latest_proxy
        if not url:
            raise ProvisionError("proxy_url is not known yet; call provision_sandbox first, or pass proxy_url to VaultOrchestrator")
        return url

    def provision_sandbox(
        self,
        *,
        agent_id: str,
        tools: Iterable[str] | None = None,
        skills: Iterable[str] | None = None,
        extra_scopes: Iterable[str] | None = None,
        ttl_seconds: int | None = 3600,
        rate: Mapping[str, str] | None = None,
        fetch_skill_content: bool = False,
    ) -> dict[str, Any]:
        """Return ATI_PROXY_URL and ATI_SESSION_TOKEN for a sandbox.

        Args:
            agent_id: Subject of the token. The role's allowed_agent_ids must match it.
            tools, skills, extra_scopes: What the token grants, of what the role grants. If all
                are None, the token grants everything that the role does. Empty lists are ignored
                if another list has items, and are otherwise an error.
            ttl_seconds: TTL of the token. More than the maximum is an error. None: the role's TTL.
            rate: Lower counts for rates of the role. None or empty: the role's rates.
            fetch_skill_content: Add "skills", as ati-client does since it has fetch_skills.
        """
        fetch_skills = getattr(self, "fetch_skills", None)
        if fetch_skill_content and not fetch_skills:
            raise ProvisionError("fetch_skill_content requires a newer ati-client; upgrade it, or omit fetch_skill_content")
        if agent_id is None:  # Vault would take the orchestrator's own identity
            raise ProvisionError("agent_id is required: the subject of the token, such as sandbox:1")
        request = _narrowed(tools, skills, extra_scopes, ttl_seconds, rate)
        request.update(agent_id=agent_id, format="env")
        data = self._mint("creds", request)
        env = {name: data[name] for name in ("ATI_PROXY_URL", "ATI_SESSION_TOKEN")}
        self._check(env["ATI_SESSION_TOKEN"], env["ATI_PROXY_URL"], ttl_seconds)
        if fetch_skill_content and fetch_skills:
            scopes = [f"{kind}:" + item.removeprefix(f"{kind}:") for kind in ("tool", "skill") for item in request.get(f"{kind}s", [])]
            try:
                env["skills"] = fetch_skills(scopes=scopes or ["*"], token=env["ATI_SESSION_TOKEN"])
            except Exception as error:  # ati-client returns no skills then
                _log.warning("fetch skills from %s: %s", env["ATI_PROXY_URL"], error)
                env["skills"] = {}
        return env

    def provision_many(
        self,
        agent_ids: Iterable[str],
        *,
        tools: Iterable[str] | None = None,
        skills: Iterable[str] | None = None,
        extra_scopes: Iterable[str] | None = None,
        ttl_seconds: int | None = 3600,
        rate: Mapping[str, str] | None = None,
    ) -> dict[str, dict[str, str]]:
        """Return what provision_sandbox returns, for each of at most 1000 agents, by agent ID.

        One request to ati/batch/<role>. If it fails, no agent has a token. The role must not
        have generate_lease=true.
        """
        ids = _items("agent_ids", agent_ids)
        if not ids:
            return {}
        request = _narrowed(tools, skills, extra_scopes, ttl_seconds, rate)
        data = self._mint("batch", {**request, "agent_ids": ids})
        for token in data["tokens"].values():
            self._check(token, data["proxy_url"], ttl_seconds)
        return {agent_id: {"ATI_PROXY_URL": data["proxy_url"], "ATI_SESSION_TOKEN": data["tokens"][agent_id]} for agent_id in ids}

    def validate_token(self, token: str, *, issuer: str | None = None, leeway: int = 60) -> TokenClaims:
        """Return the claims of a token that is valid for the mount; otherwise raise TokenError.

        A token with any audience of the mount is valid, unless default_aud is set. issuer
        defaults to default_iss, or else to the issuer of the mount. leeway is at most 60 seconds.
        """
        request = {"token": token, "audience": self.default_aud, "issuer": issuer or self.default_iss, "leeway": leeway}
        data = self._write("validate", request, rejected=TokenError)
        if not data["valid"]:
            raise TokenError(data["error"])
        ati = AtiNamespace(v=data["ati_version"], rate=data.get("rate", {})) if "ati_version" in data else None
        claims: dict[str, Any] = {name: data.get(name) for name in ("sub", "aud", "iat", "exp", "scope", "iss", "jti")}
        return TokenClaims(**claims, ati=ati)

    def revoke(self, *, agent_id: str) -> dict[str, Any]:
        """Revoke all tokens of an agent that were issued until now, whichever role issued them.

        The role's allowed_agent_ids must match the agent. Only proxies behind ati-guard enforce
        revocations. The response takes up to a second, and tokens requested after it are valid.
        """
        return self._write(f"revoke/{self._role}", {"agent_id": agent_id})

    def _mint(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        return self._write(f"{operation}/{self._role}", {**request, "proxy_url": self._proxy})

    def _check(self, token: str, proxy_url: str, ttl_seconds: int | None) -> None:
        """Raise ProvisionError if a token is not what was requested, so that it is not handed out."""
        claims = inspect_token(token)
        ttl = claims.exp - claims.iat
        if ttl_seconds is not None and ttl < ttl_seconds:
            raise ProvisionError(
                f"ttl_seconds {ttl_seconds}: the maximum for role {self._role} is {ttl}; request at most that, "
                "or raise max_ttl of the role, the config, or the mount"
            )
        for claim, want, have in (("audience", self.default_aud, claims.aud), ("issuer", self.default_iss, claims.iss)):
            if want is not None and have != want:
                raise ProvisionError(
                    f"the {claim} of role {self._role} is {have!r}, not {want!r}; change {claim} in Vault, "
                    f"or omit default_{claim[:3]}"
                )
        self._latest_proxy = proxy_url

    def _write(self, path: str, request: dict[str, Any], rejected: type[AtiError] = ProvisionError) -> dict[str, Any]:
        """Return the data of a response from Vault, and log its warnings."""
        path = f"{self._mount}/{path}"
        request = {name: value for name, value in request.items() if value is not None}
        with _errors(path, rejected, f"the Vault token must not have expired, and its policy must allow update on {path}"):
            try:
                response = self._vault.write_data(path, data=request)
            except hvac.exceptions.Forbidden:
                if not self._login:
                    raise
                self._log_in()
                response = self._vault.write_data(path, data=request)
        if not isinstance(response, dict):  # a standby may return no JSON while its active node shuts down
            raise VaultUnavailable(f"{path}: empty response from Vault; retry")
        for warning in response.get("warnings") or []:
            _log.warning("%s: %s", path, warning)
        data: dict[str, Any] = response["data"]
        return data

    def _log_in(self) -> None:
        assert self._login
        with _errors("log in to Vault", ProvisionError, "check the login and its role"):
            self._login(self._vault)


def _narrowed(
    tools: Iterable[str] | None,
    skills: Iterable[str] | None,
    extra_scopes: Iterable[str] | None,
    ttl_seconds: int | None,
    rate: Mapping[str, str] | None,
) -> dict[str, Any]:
    """Return the parameters that narrow the role. Empty lists must not grant everything."""
    lists = {"tools": tools, "skills": skills, "scopes": extra_scopes}
    given = {name: _items(name, items) for name, items in lists.items() if items is not None}
    narrowed = {name: items for name, items in given.items() if items}
    if given and not narrowed:
        raise ProvisionError(
            f"{' and '.join(given)}: empty; list at least one that the role grants, or pass None to get everything that it grants"
        )
    return {**narrowed, "ttl": ttl_seconds, "rate": dict(rate) if rate else None}


def _items(name: str, items: Iterable[str]) -> list[str]:
    """Return the items of a list. A string is an iterable too, of its characters."""
    if isinstance(items, str):
        raise ProvisionError(f"{name} {items!r}: must be a list of strings")
    return list(items)


@contextmanager
def _errors(what: str, rejected: type[AtiError], forbidden: str) -> Iterator[None]:
    """Raise errors of hvac and requests as errors of ati-client, with Vault's message."""

    def text(error: hvac.exceptions.VaultError) -> str:
        # Vault joins errors: "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"
        message = re.sub(r"^\d+ errors? occurred:\s+\* ", "", error.args[0] or type(error).__name__)
        return f"{what}: " + " ".join(message.replace("\n\t* ", ", ").split()).rstrip(".")

    try:
        yield
    except hvac.exceptions.InvalidRequest as error:
        raise rejected(text(error)) from error
    except hvac.exceptions.Forbidden as error:
        raise ProvisionError(f"{text(error)}; {forbidden}") from error
    except hvac.exceptions.InvalidPath as error:
        raise ProvisionError(f"{text(error)}; check mount, role, and namespace") from error
    except _UNAVAILABLE as error:
        raise VaultUnavailable(f"{text(error)}; retry") from error
    except hvac.exceptions.VaultError as error:
        raise ProvisionError(text(error)) from error
    except (requests.exceptions.InvalidHeader, UnicodeError):  # its message has the Vault token
        raise ProvisionError(f"{what}: the Vault token has a line break or a character that is not allowed") from None
    except (requests.ConnectionError, requests.Timeout) as error:
        raise VaultUnavailable(f"{what}: {error}; check VAULT_ADDR, or retry") from error
    except requests.RequestException as error:
        raise ProvisionError(f"{what}: {error}") from error
