"""The ``Authorization`` that a registry asks for (distribution-spec; token authentication as Docker's registry specifies it)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import trio

from ipfs_store.errors import RegistryUnavailable
from ipfs_store.images.sources.credentials import Credentials

_PARAMETER = re.compile(r'([a-zA-Z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
LOGIN = "log in with docker login, or name USER:PASSWORD with --creds"
_MAX_ANSWER = 1 << 20


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a 401 answer asks for."""

    scheme: str
    """``bearer`` or ``basic``."""
    realm: str = ""
    service: str = ""
    scope: str = ""


def parse_challenges(headers: list[str]) -> list[Challenge]:
    """Those of ``WWW-Authenticate`` headers that we can meet, bearer tokens first."""
    found: list[Challenge] = []
    for header in headers:
        # Several challenges may stand in one header (RFC 9110, 11.6.1); each begins with its scheme and a space.
        for part in re.split(r"(?:^|,)\s*(?=(?:Bearer|Basic|Digest|Negotiate)\s)", header, flags=re.IGNORECASE):
            scheme, _, rest = part.strip().partition(" ")
            if scheme.lower() in ("bearer", "basic"):
                values = {name.lower(): re.sub(r"\\(.)", r"\1", quoted) or bare for name, quoted, bare in _PARAMETER.findall(rest)}
                found.append(Challenge(scheme.lower(), values.get("realm", ""), values.get("service", ""), values.get("scope", "")))
    return sorted(found, key=lambda challenge: challenge.scheme != "bearer")


class Authorization:
    """Keeps the header that a repository wanted last, for all requests to come."""

    def __init__(self, client: httpx.AsyncClient, credentials: Credentials | None, *, where: str, scope: str, secure: bool) -> None:
        """``secure``: the registry is talked to by TLS, so the password must not go elsewhere without."""
        self._client = client
        self._credentials = credentials
        self._where = where
        self._scope = scope
        self._secure = secure
        self._lock = trio.Lock()
        self.header: str | None = None

    async def renew(self, refused: httpx.Response, used: str | None) -> bool:
        """After a 401 to a request with the header ``used``: whether it is worth trying again. Raises RegistryUnavailable."""
        async with self._lock:
            if self.header != used:
                return True  # another request was quicker
            for challenge in parse_challenges(refused.headers.get_list("WWW-Authenticate")):
                if challenge.scheme == "bearer":
                    self.header = f"Bearer {await self._token(challenge)}"
                    return True
                if self._credentials is not None and self._credentials.user and self._credentials.basic != used:
                    self.header = self._credentials.basic
                    return True
            return False

    async def _token(self, challenge: Challenge) -> str:
        realm = urlsplit(challenge.realm)
        if realm.scheme not in ("https", "http") or not realm.netloc:
            raise RegistryUnavailable(f"{self._where} wants a token from {challenge.realm[:200]!r}, which is no address")
        if self._secure and realm.scheme == "http" and self._credentials is not None:
            raise RegistryUnavailable(f"{self._where} wants the password sent unencrypted to {realm.netloc}; it is not")
        scope = challenge.scope or self._scope
        known = self._credentials
        try:
            if known is not None and known.identity_token:
                form = {"grant_type": "refresh_token", "refresh_token": known.identity_token, "service": challenge.service}
                answer = await self._client.post(challenge.realm, data={**form, "scope": scope, "client_id": "ipfs-store"})
            else:
                headers = {"Authorization": known.basic} if known is not None and known.user else {}
                parameters = {"scope": scope} | ({"service": challenge.service} if challenge.service else {})
                url = httpx.URL(challenge.realm).copy_merge_params(parameters)
                answer = await self._client.get(url, headers=headers)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise RegistryUnavailable(f"{self._where}: {realm.netloc}, which gives tokens, does not answer: {reason}") from error
        if answer.status_code in (401, 403, 400) and known is not None:
            raise RegistryUnavailable(
                f"{self._where}: {realm.netloc} does not accept the user or password ({answer.status_code})", hint=LOGIN
            )
        if answer.status_code != 200 or len(answer.content) > _MAX_ANSWER:
            raise RegistryUnavailable(f"{self._where}: {realm.netloc} gives no token: HTTP {answer.status_code}", hint=LOGIN)
        try:
            value = answer.json()
        except ValueError:
            value = None
        token = (value.get("token") or value.get("access_token")) if isinstance(value, dict) else None
        if not isinstance(token, str) or not token or not token.isascii() or any(character.isspace() for character in token):
            raise RegistryUnavailable(f"{self._where}: the answer of {realm.netloc} has no token in it")
        return token
