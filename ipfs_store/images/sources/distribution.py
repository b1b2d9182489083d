"""The pull half of the distribution-spec: manifests by tag or digest, blobs by digest, taken up again where a connection broke."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping

import httpx
import trio

from ipfs_store.errors import BlobMismatch, ImageNotFound, InvalidDescriptor
from ipfs_store.images.referrers import COSIGN_SUFFIXES, fallback_tag
from ipfs_store.images.sources.scratch import PIECE, Scratch, check_bytes
from ipfs_store.images.sources.session import Broken, Session, check_status
from ipfs_store.oci import Descriptor, Digest, Index, Reference
from ipfs_store.oci.manifest import MAX_DOCUMENT, decode_document
from ipfs_store.oci.media_types import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, is_index, is_manifest

_REFERRER_PAGES = 100
_ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST))


class Registry:
    """What can be read from a repository. Raises RegistryUnavailable where it does not answer or does not let us in."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._where = session.where

    @property
    def reference(self) -> Reference:
        """What is asked for."""
        return self._session.reference

    async def aclose(self) -> None:
        """Close connections."""
        await self._session.aclose()

    async def resolve(self) -> tuple[Descriptor, bytes]:
        """The descriptor and the document that the reference names; raises ImageNotFound, BlobMismatch, InvalidDescriptor."""
        name = str(self.reference)
        body, headers = await self._small(f"manifests/{self.reference.target}", name, {"Accept": _ACCEPT})
        digest = Digest.of(body)
        if self.reference.digest is not None and digest != self.reference.digest:
            raise BlobMismatch(f"{name}: the registry sent a manifest of digest {digest}")
        media_type = headers.get("Content-Type", "").partition(";")[0].strip()
        if not is_index(media_type) and not is_manifest(media_type):
            media_type = _media_type(body, media_type, name)
        return Descriptor(media_type, digest, len(body)), body

    async def document(self, descriptor: Descriptor) -> bytes:
        """A manifest or config; raises ImageNotFound, BlobMismatch, InvalidDescriptor."""
        if descriptor.size > MAX_DOCUMENT:
            raise InvalidDescriptor(f"{self.reference}: {descriptor.digest} has {descriptor.size} bytes, over the limit of {MAX_DOCUMENT}")
        listed = is_index(descriptor.media_type) or is_manifest(descriptor.media_type)
        path = f"{'manifests' if listed else 'blobs'}/{descriptor.digest}"
        headers = {"Accept": descriptor.media_type} if listed else {}
        body, _ = await self._small(path, f"{descriptor.digest} of {self.reference}", headers)
        return check_bytes(body, descriptor, self._where)

    async def referrers(self, subject: Digest) -> list[Descriptor]:
        """What refers to a manifest: by the referrers API, else by the tag that stands in for it, and by cosign's tags.

        Raises InvalidDescriptor where an answer is no index.
        """
        found = await self._listed_referrers(subject)
        for suffix in COSIGN_SUFFIXES:
            try:
                body, headers = await self._small(
                    f"manifests/{fallback_tag(subject)}{suffix}", f"{suffix} of {subject}", {"Accept": _ACCEPT}
                )
            except ImageNotFound:
                continue
            media_type = headers.get("Content-Type", "").partition(";")[0].strip()
            found.append(Descriptor(media_type, Digest.of(body), len(body)))
        return list({item.digest: item for item in found}.values())

    async def _listed_referrers(self, subject: Digest) -> list[Descriptor]:
        what = f"the referrers of {subject}"
        path = f"referrers/{subject}"
        found: list[Descriptor] = []
        for _ in range(_REFERRER_PAGES):
            try:
                body, headers = await self._small(path, what, {"Accept": OCI_INDEX})
            except ImageNotFound:
                if found:
                    raise
                try:
                    body, headers = await self._small(f"manifests/{fallback_tag(subject)}", what, {"Accept": OCI_INDEX})
                except ImageNotFound:
                    return []
            found += Index.parse(body, where=f"{self._where}: {what}", media_type=OCI_INDEX).manifests
            following = re.match(r"\s*<([^>]+)>\s*;\s*rel=\"?next\"?", headers.get("Link", ""))
            if following is None:
                return found
            path = str(httpx.URL(f"{self._session.base}/").join(following[1]))
        raise InvalidDescriptor(f"{self._where}: {what} fill more than {_REFERRER_PAGES} pages")

    async def download(self, descriptor: Descriptor, target: Scratch, advance: Callable[[int], None]) -> None:
        """All of a blob into ``target``; raises ImageNotFound, BlobMismatch, StorageFailed."""
        what = f"layer {descriptor.digest} of {self.reference}"
        state = _Download(descriptor, target, advance, self._where)

        async def attempt() -> None:
            headers = {"Range": f"bytes={state.size}-"} if state.size else {}
            async with self._session.opened(f"blobs/{descriptor.digest}", headers) as response:
                if state.size and (response.status_code == 416 or (response.is_success and not _continues(response, state.size))):
                    await state.restart()
                check_status(response, what, self._where)
                await state.take(response)
            if state.size < descriptor.size:
                raise Broken(f"the connection ended after {state.size} of {descriptor.size} bytes")

        await self._session.retried(f"does not give {what}", attempt, lambda: state.size)
        await state.finish()

    async def part(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        """``length`` bytes of a blob from ``offset``, not checked; raises ImageNotFound."""
        what = f"layer {descriptor.digest} of {self.reference}"

        async def attempt() -> bytes:
            headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
            async with self._session.opened(f"blobs/{descriptor.digest}", headers) as response:
                check_status(response, what, self._where)
                skipped = 0 if _continues(response, offset) else offset  # a registry that knows no ranges sends everything
                body = bytearray()
                async for piece in response.aiter_raw():  # to its end: httpx's generators complain where they are left
                    passed = min(skipped, len(piece))
                    skipped -= passed
                    body += piece[passed : passed + length - len(body)]
            if len(body) < length:
                raise Broken(f"the connection ended after {len(body)} of {length} bytes")
            return bytes(body)

        return await self._session.retried(f"does not give {what}", attempt)

    async def _small(self, path: str, what: str, headers: Mapping[str, str]) -> tuple[bytes, Mapping[str, str]]:
        async def attempt() -> tuple[bytes, Mapping[str, str]]:
            async with self._session.opened(path, headers) as response:
                check_status(response, what, self._where)
                too_long = InvalidDescriptor(f"{what} is over the limit of {MAX_DOCUMENT} bytes for a document")
                if _declared(response) > MAX_DOCUMENT:
                    raise too_long
                body = bytearray()
                async for piece in response.aiter_raw():
                    body += piece
                    if len(body) > MAX_DOCUMENT:
                        raise too_long
                return bytes(body), response.headers

        return await self._session.retried(f"does not give {what}", attempt, lambda: 0)


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


def _declared(response: httpx.Response) -> int:
    """The length that is promised, which HTTP then holds the registry to; 0 where none is."""
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() else 0
