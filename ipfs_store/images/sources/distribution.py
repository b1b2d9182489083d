"""The pull half of the distribution-spec: manifests by tag or digest, blobs by digest, taken up again where a connection broke."""

from __future__ import annotations

import hashlib
import logging
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import TypeVar

import httpx
import trio

from ipfs_store import __version__
from ipfs_store.errors import BlobMismatch, ImageNotFound, InvalidDescriptor, RegistryUnavailable
from ipfs_store.images.sources.authorization import LOGIN, Authorization
from ipfs_store.images.sources.credentials import Credentials
from ipfs_store.images.sources.scratch import PIECE, Scratch, check_bytes
from ipfs_store.oci import Descriptor, Digest, Reference
from ipfs_store.oci.manifest import MAX_DOCUMENT, decode_document
from ipfs_store.oci.media_types import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, is_index, is_manifest

T = TypeVar("T")

_log = logging.getLogger(__name__)
_TIMEOUT = httpx.Timeout(30.0, connect=15.0)  # seconds without a byte, not for a whole blob
_TRIES = 5
_CONNECT_TRIES = 3  # nobody listens there: likelier a wrong port than a restart
_FIRST_DELAY = 0.5  # seconds, doubled each time, unless the registry asks for more in Retry-After
_LONGEST_DELAY = 30.0
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST))


class Registry:
    """One repository of a registry. Raises RegistryUnavailable where it does not answer or does not let us in."""

    def __init__(self, reference: Reference, credentials: Credentials | None, *, plain_http: bool) -> None:
        """``plain_http``: without TLS, as this machine (localhost) is always talked to."""
        here = is_this_machine(reference.domain)
        scheme = "http" if plain_http or here else "https"
        host = "registry-1.docker.io" if reference.domain == "docker.io" else reference.domain
        self._reference = reference
        self._base = f"{scheme}://{host}/v2/{reference.path}"
        self._where = f"registry {reference.domain}"
        self._client = httpx.AsyncClient(
            timeout=_TIMEOUT,
            follow_redirects=True,
            trust_env=not here,  # a proxy of the environment is no way to this machine
            headers={"User-Agent": f"ipfs-store/{__version__}", "Accept-Encoding": "identity"},
        )
        scope = f"repository:{reference.path}:pull"
        self._authorization = Authorization(self._client, credentials, where=self._where, scope=scope, secure=scheme == "https")

    async def aclose(self) -> None:
        """Close connections."""
        await self._client.aclose()

    async def resolve(self) -> tuple[Descriptor, bytes]:
        """The descriptor and the document that the reference names; raises ImageNotFound, BlobMismatch, InvalidDescriptor."""
        name = str(self._reference)
        body, headers = await self._small(f"manifests/{self._reference.target}", name, {"Accept": _ACCEPT})
        digest = Digest.of(body)
        if self._reference.digest is not None and digest != self._reference.digest:
            raise BlobMismatch(f"{name}: the registry sent a manifest of digest {digest}")
        media_type = headers.get("Content-Type", "").partition(";")[0].strip()
        if not is_index(media_type) and not is_manifest(media_type):
            media_type = _media_type(body, media_type, name)
        return Descriptor(media_type, digest, len(body)), body

    async def document(self, descriptor: Descriptor) -> bytes:
        """A manifest or config; raises ImageNotFound, BlobMismatch, InvalidDescriptor."""
        if descriptor.size > MAX_DOCUMENT:
            raise InvalidDescriptor(f"{self._reference}: {descriptor.digest} has {descriptor.size} bytes, over the limit of {MAX_DOCUMENT}")
        listed = is_index(descriptor.media_type) or is_manifest(descriptor.media_type)
        path = f"{'manifests' if listed else 'blobs'}/{descriptor.digest}"
        headers = {"Accept": descriptor.media_type} if listed else {}
        body, _ = await self._small(path, f"{descriptor.digest} of {self._reference}", headers)
        return check_bytes(body, descriptor, self._where)

    async def download(self, descriptor: Descriptor, target: Scratch, advance: Callable[[int], None]) -> None:
        """All of a blob into ``target``; raises ImageNotFound, BlobMismatch, StorageFailed."""
        what = f"layer {descriptor.digest} of {self._reference}"
        state = _Download(descriptor, target, advance, self._where)

        async def attempt() -> None:
            headers = {"Range": f"bytes={state.size}-"} if state.size else {}
            async with self._opened(f"blobs/{descriptor.digest}", headers) as response:
                if state.size and (response.status_code == 416 or (response.is_success and not _continues(response, state.size))):
                    await state.restart()
                _check_status(response, what, self._where)
                await state.take(response)
            if state.size < descriptor.size:
                raise _Broken(f"the connection ended after {state.size} of {descriptor.size} bytes")

        await self._retried(what, attempt, lambda: state.size)
        await state.finish()

    async def _small(self, path: str, what: str, headers: Mapping[str, str]) -> tuple[bytes, Mapping[str, str]]:
        async def attempt() -> tuple[bytes, Mapping[str, str]]:
            async with self._opened(path, headers) as response:
                _check_status(response, what, self._where)
                too_long = InvalidDescriptor(f"{what} is over the limit of {MAX_DOCUMENT} bytes for a document")
                if _declared(response) > MAX_DOCUMENT:
                    raise too_long
                body = bytearray()
                async for piece in response.aiter_raw():
                    body += piece
                    if len(body) > MAX_DOCUMENT:
                        raise too_long
                return bytes(body), response.headers

        return await self._retried(what, attempt, lambda: 0)

    @asynccontextmanager
    async def _opened(self, path: str, headers: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        """The answer to a GET, its body not read yet; asked once more, with an authorization, where the registry wants one."""
        for last in (False, False, True):  # a token that has run out is refused, renewed, and may be refused by a mirror once more
            used = self._authorization.header
            authorization = {"Authorization": used} if used else {}
            async with self._client.stream("GET", f"{self._base}/{path}", headers={**headers, **authorization}) as response:
                if response.status_code == 401 and not last and await self._authorization.renew(response, used):
                    continue
                yield response
                return

    async def _retried(self, what: str, attempt: Callable[[], Awaitable[T]], progress: Callable[[], int]) -> T:
        """``attempt`` until it works; RegistryUnavailable after five in a row that brought nothing new."""
        failures, before = 0, 0
        while True:
            try:
                return await attempt()
            except (httpx.TransportError, httpx.TooManyRedirects, httpx.InvalidURL, _Broken) as error:
                failures = 1 if progress() > before else failures + 1
                before = progress()
                reason = _reason(error)
                if failures >= (_CONNECT_TRIES if isinstance(error, httpx.ConnectError) else _TRIES) or _is_final(error):
                    hint = "does it speak plain HTTP? then --plain-http" if _is_tls(error) else None
                    raise RegistryUnavailable(f"{self._where} does not give {what}: {reason}", hint=hint) from error
                delay = min(_FIRST_DELAY * 2 ** (failures - 1), _LONGEST_DELAY)
                if isinstance(error, _Broken):
                    delay = min(max(delay, error.retry_after), _LONGEST_DELAY)
                _log.info("%s: %s; trying again in %.1f s", what, reason, delay)
                await trio.sleep(delay)


class _Broken(Exception):
    """An answer that is worth another try."""

    def __init__(self, message: str, retry_after: float = 0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _Download:
    """What of a blob has come, hashed as it comes."""

    def __init__(self, descriptor: Descriptor, target: Scratch, advance: Callable[[int], None], where: str) -> None:
        self.size = 0
        self._descriptor = descriptor
        self._target = target
        self._advance = advance
        self._where = where
        self._hasher = hashlib.sha256()

    async def take(self, response: httpx.Response) -> None:
        """The body of an answer; what came before a connection breaks is kept."""
        longer = BlobMismatch(f"{self._where}: blob {self._descriptor.digest} is longer than the {self._descriptor.size} bytes described")
        if self.size + _declared(response) > self._descriptor.size:
            raise longer
        buffer = bytearray()
        try:
            async for piece in response.aiter_raw():
                buffer += piece
                if self.size + len(buffer) > self._descriptor.size:
                    raise longer
                if len(buffer) >= PIECE:
                    await self._append(bytes(buffer))
                    buffer.clear()
        finally:
            if buffer and self.size + len(buffer) <= self._descriptor.size:
                with trio.CancelScope(shield=True):
                    await self._append(bytes(buffer))

    async def restart(self) -> None:
        """Forget what came: the registry cannot continue."""
        self._advance(-self.size)
        self.size = 0
        self._hasher = hashlib.sha256()
        await trio.to_thread.run_sync(self._target.truncate)

    async def finish(self) -> None:
        """Raises BlobMismatch, StorageFailed."""
        if self._hasher.hexdigest() != self._descriptor.digest.hex:
            raise BlobMismatch(f"{self._where}: blob {self._descriptor.digest} is damaged: its digest is sha256:{self._hasher.hexdigest()}")
        await trio.to_thread.run_sync(self._target.flush)

    async def _append(self, data: bytes) -> None:
        def work() -> None:
            self._target.write(data)
            self._hasher.update(data)

        await trio.to_thread.run_sync(work)
        self.size += len(data)
        self._advance(len(data))


def is_this_machine(domain: str) -> bool:
    """Whether a registry's ``HOST[:PORT]`` is a loopback address."""
    host = domain[1:].partition("]")[0] if domain.startswith("[") else domain.partition(":")[0]
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _media_type(body: bytes, said: str, name: str) -> str:
    """For registries that answer ``text/plain`` or ``application/json``: what the document itself says it is."""
    document = decode_document(body, where=name)
    if document.get("schemaVersion") == 1:
        raise InvalidDescriptor(
            f"{name} is an image of schema version 1, as before 2017", hint="push it to the registry again with a current tool"
        )
    own = document.get("mediaType")
    if not isinstance(own, str):
        own = OCI_INDEX if "manifests" in document else OCI_MANIFEST if "layers" in document else said
    if not is_index(own) and not is_manifest(own):
        raise InvalidDescriptor(f"{name} is a {own[:100]!r}, neither index nor manifest")
    return own


def _continues(response: httpx.Response, offset: int) -> bool:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return response.status_code == 206 and match is not None and int(match[1]) == offset


def _check_status(response: httpx.Response, what: str, where: str) -> None:
    status = response.status_code
    if response.is_success:
        return
    if status in (401, 403):
        why = "wants you to log in" if status == 401 else "does not allow it"
        raise RegistryUnavailable(f"{where} does not give {what}: it {why} (HTTP {status})", hint=f"{LOGIN}; or the name is wrong")
    if status in (404, 410):
        raise ImageNotFound(f"{where} does not have {what}")
    if status in _RETRIED:
        raise _Broken(f"HTTP {status} {response.reason_phrase}", _seconds(response.headers.get("Retry-After", "")))
    if status == 416:
        raise _Broken("the registry cannot continue a blob")
    raise RegistryUnavailable(f"{where} does not give {what}: HTTP {status} {response.reason_phrase}")


def _declared(response: httpx.Response) -> int:
    """The length that is promised, which HTTP then holds the registry to; 0 where none is."""
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() else 0


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
