"""Talking to one repository of a registry: authorization, tries, and what its answers mean (distribution-spec)."""

from __future__ import annotations

import json
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import TypeVar

import httpx
import trio

from ipfs_store import __version__
from ipfs_store.errors import ImageNotFound, RegistryUnavailable
from ipfs_store.images.sources.authorization import LOGIN, Authorization
from ipfs_store.images.sources.credentials import Credentials, find_credentials
from ipfs_store.oci import Reference

T = TypeVar("T")
Body = Callable[[], httpx.AsyncByteStream]
"""Makes the body of a request, each time that it is sent. No async generators: left in the middle, when a connection breaks, those complain."""

_log = logging.getLogger(__name__)
_TIMEOUT = httpx.Timeout(30.0, connect=15.0)  # seconds without a byte, not for a whole blob
_TRIES = 5
_CONNECT_TRIES = 3  # nobody listens there: likelier a wrong port than a restart
_FIRST_DELAY = 0.5  # seconds, doubled each time, unless the registry asks for more in Retry-After
_LONGEST_DELAY = 30.0
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_MAX_ERROR = 16 << 10  # bytes of an answer that says what was wrong


async def connect(reference: Reference, credentials: tuple[str, str] | None, *, plain_http: bool, write: bool = False) -> Session:
    """A session for the repository of ``reference``; ``credentials`` None: those of Docker's and Podman's configuration."""
    if credentials is not None:
        found: Credentials | None = Credentials(*credentials)
    else:
        found = await trio.to_thread.run_sync(find_credentials, reference.domain, reference.path)
    return Session(reference, found, plain_http=plain_http, write=write)


class Session:
    """Requests to one repository. Raises RegistryUnavailable where the registry does not answer or does not let us in."""

    def __init__(self, reference: Reference, credentials: Credentials | None, *, plain_http: bool, write: bool = False) -> None:
        """``plain_http``: without TLS, as this machine (localhost) is always talked to. ``write``: what tokens are asked for."""
        here = is_this_machine(reference.domain)
        scheme = "http" if plain_http or here else "https"
        host = "registry-1.docker.io" if reference.domain == "docker.io" else reference.domain
        self.reference = reference
        self.base = f"{scheme}://{host}/v2/{reference.path}"
        self.where = f"registry {reference.domain}"
        self._client = httpx.AsyncClient(
            timeout=_TIMEOUT,
            follow_redirects=True,
            trust_env=not here,  # a proxy of the environment is no way to this machine
            headers={"User-Agent": f"ipfs-store/{__version__}", "Accept-Encoding": "identity"},
        )
        scope = f"repository:{reference.path}:{'pull,push' if write else 'pull'}"
        self._authorization = Authorization(self._client, credentials, where=self.where, scope=scope, secure=scheme == "https")

    async def aclose(self) -> None:
        """Close connections."""
        await self._client.aclose()

    @asynccontextmanager
    async def opened(
        self, path: str, headers: Mapping[str, str] | None = None, *, method: str = "GET", body: Body | None = None
    ) -> AsyncIterator[httpx.Response]:
        """The answer to a request for ``path`` below the repository (or a whole URL), its body not read yet.

        Asked once more, with an authorization, where the registry wants one.
        """
        url = path if "://" in path else f"{self.base}/{path}"
        ours = httpx.URL(url).netloc == httpx.URL(self.base).netloc  # an upload may go to a storage service, which is told nothing
        for last in (False, False, True):  # a token that has run out is refused, renewed, and may be refused by a mirror once more
            used = self._authorization.header
            authorization = {"Authorization": used} if used and ours else {}
            request = self._client.build_request(method, url, headers={**(headers or {}), **authorization})
            sent = body() if body is not None else None
            if sent is not None:
                request.stream = sent
            try:
                response = await self._client.send(request, stream=True, follow_redirects=sent is None)
                try:
                    if response.status_code == 401 and not last and ours and await self._authorization.renew(response, used):
                        continue
                    yield response
                    return
                finally:
                    await response.aclose()
            finally:
                if sent is not None:
                    await sent.aclose()  # httpx does not

    async def retried(self, what: str, attempt: Callable[[], Awaitable[T]], progress: Callable[[], int] = lambda: 0) -> T:
        """``attempt`` until it works; RegistryUnavailable after five in a row that brought nothing new. ``what`` follows "registry R "."""
        failures, before = 0, 0
        while True:
            try:
                return await attempt()
            except (httpx.TransportError, httpx.TooManyRedirects, httpx.InvalidURL, Broken) as error:
                failures = 1 if progress() > before else failures + 1
                before = progress()
                reason = _reason(error)
                if failures >= (_CONNECT_TRIES if isinstance(error, httpx.ConnectError) else _TRIES) or _is_final(error):
                    hint = "does it speak plain HTTP? then --plain-http" if _is_tls(error) else None
                    raise RegistryUnavailable(f"{self.where} {what}: {reason}", hint=hint) from error
                delay = min(_FIRST_DELAY * 2 ** (failures - 1), _LONGEST_DELAY)
                if isinstance(error, Broken):
                    delay = min(max(delay, error.retry_after), _LONGEST_DELAY)
                _log.info("%s %s: %s; trying again in %.1f s", self.where, what, reason, delay)
                await trio.sleep(delay)


class Broken(Exception):
    """An answer that is worth another try."""

    def __init__(self, message: str, retry_after: float = 0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def is_this_machine(domain: str) -> bool:
    """Whether a registry's ``HOST[:PORT]`` is a loopback address."""
    host = domain[1:].partition("]")[0] if domain.startswith("[") else domain.partition(":")[0]
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def check_status(response: httpx.Response, what: str, where: str) -> None:
    """Raises for an answer to a request for ``what`` that is none: RegistryUnavailable, ImageNotFound, Broken (worth another try)."""
    status = response.status_code
    if response.is_success:
        return
    if status in (404, 410):
        raise ImageNotFound(f"{where} does not have {what}")
    if status == 416:
        raise Broken("the registry cannot continue a blob")
    _refused(response, f"{where} does not give {what}")


async def check_written(response: httpx.Response, failure: str) -> None:
    """Raises ``failure`` for an answer that is a refusal, with what the registry says of it: RegistryUnavailable, Broken."""
    if response.is_success:
        return
    said = ""
    if response.status_code not in _RETRIED:
        body = bytearray()
        async for piece in response.aiter_raw():
            body += piece[: _MAX_ERROR - len(body)]
        said = _said(bytes(body))
    _refused(response, failure, said)


def _refused(response: httpx.Response, failure: str, said: str = "") -> None:
    status = response.status_code
    if status in _RETRIED:
        raise Broken(f"HTTP {status} {response.reason_phrase}", _seconds(response.headers.get("Retry-After", "")))
    if status in (401, 403):
        why = "wants you to log in" if status == 401 else "does not allow it"
        raise RegistryUnavailable(f"{failure}: it {why} (HTTP {status})", hint=f"{LOGIN}; or the name is wrong")
    raise RegistryUnavailable(f"{failure}: HTTP {status} {response.reason_phrase}" + (f": {said}" if said else ""))


def _said(body: bytes) -> str:
    """The first error of an answer (distribution-spec, "Error Codes")."""
    try:
        error = json.loads(body)["errors"][0]
        detail = error.get("detail")
        text = f"{error['code']}: {error.get('message', '')}" + (f" ({json.dumps(detail)})" if detail else "")
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""
    return text[:400]


def _seconds(text: str) -> float:
    return float(text) if text.isascii() and text.isdigit() else 0


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    return str(error) or type(error).__name__


def _is_tls(error: BaseException) -> bool:
    return any(isinstance(cause, ssl.SSLError) for cause in _causes(error)) or "SSL" in str(error)


def _is_final(error: BaseException) -> bool:
    """What another try cannot change: no such host, no TLS there, redirects without end."""
    named = "Name or service not known" in str(error) or "No address associated" in str(error) or "nodename nor servname" in str(error)
    return named or _is_tls(error) or isinstance(error, httpx.TooManyRedirects | httpx.UnsupportedProtocol | httpx.InvalidURL)


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
