"""The push half of the distribution-spec: blobs that are not there yet, in one piece or, where that broke, in several; manifests by tag."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO

import httpx
import trio

from ipfs_store.errors import BlobMismatch, RegistryUnavailable
from ipfs_store.images.sources.session import Broken, Session, check_written
from ipfs_store.oci import Descriptor, Reference

CHUNK = 32 << 20
"""Bytes of one PATCH after a first try in one piece broke; storage services behind registries want at least 5 MiB."""
_PIECE = 1 << 20
_BINARY = "application/octet-stream"


class Uploads:
    """Writes to one repository. Raises RegistryUnavailable where the registry does not answer, or refuses."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._begun: dict[str, str] = {}

    async def has(self, blob: Descriptor) -> bool:
        """Whether the repository has the blob."""

        async def attempt() -> bool:
            async with self._session.opened(f"blobs/{blob.digest}", method="HEAD") as response:
                if response.status_code in (404, 410):
                    return False
                await check_written(response, f"{self._session.where} does not say whether it has {blob.digest}")
                return True

        return await self._session.retried(f"does not say whether it has {blob.digest}", attempt)

    async def mount(self, blob: Descriptor, source: Reference) -> bool:
        """Ask the registry to take the blob from another of its repositories; whether it did."""

        async def attempt() -> bool:
            path = f"blobs/uploads/?mount={blob.digest}&from={source.path}"
            async with self._session.opened(path, {"Content-Length": "0"}, method="POST") as response:
                if response.status_code == 201:
                    return True
                if response.status_code == 202:  # it did not, and begins an upload instead
                    self._begun[str(blob.digest)] = _location(response)
                return False  # whatever it does not like of it: the blob can be sent

        return await self._session.retried(f"does not take {blob.digest} from {source.path}", attempt)

    async def put_blob(self, blob: Descriptor, path: Path, advance: Callable[[int], None]) -> None:
        """Send the file; taken up again where a connection broke, as far as the registry can."""
        upload = _Upload(self._session, blob, path, advance, self._begun.pop(str(blob.digest), ""))
        await self._session.retried(f"does not take {blob.digest}", upload.attempt, lambda: upload.kept)

    async def put_small(self, blob: Descriptor, data: bytes) -> None:
        """Send a small blob (a config)."""

        async def attempt() -> None:
            location = await begin(self._session, str(blob.digest))
            await _finish(self._session, location, blob, data)

        await self._session.retried(f"does not take {blob.digest}", attempt)

    async def put_manifest(self, manifest: Descriptor, data: bytes, target: str) -> None:
        """Send an index or manifest under ``target``, a tag or its digest."""
        what = f"{target} of {self._session.reference.domain}/{self._session.reference.path}"

        async def attempt() -> None:
            headers = {"Content-Type": manifest.media_type, "Content-Length": str(len(data))}
            async with self._session.opened(f"manifests/{target}", headers, method="PUT", body=lambda: httpx.ByteStream(data)) as response:
                await check_written(response, f"{self._session.where} does not take {what}")
                said = response.headers.get("Docker-Content-Digest", "")
                if said and said != str(manifest.digest):
                    raise BlobMismatch(f"{self._session.where} took {what} as {said}; it is {manifest.digest}")

        await self._session.retried(f"does not take {what}", attempt)


class _Upload:
    def __init__(self, session: Session, blob: Descriptor, path: Path, advance: Callable[[int], None], location: str) -> None:
        self._session = session
        self._blob = blob
        self._path = path
        self._advance = advance
        self._location = location
        self._told = 0
        self._broken = False
        self.kept = 0
        """Bytes that the registry has for sure."""

    async def attempt(self) -> None:
        """Everything in one piece; after a failure in pieces, from where the registry has arrived."""
        try:
            if not self._broken:
                location = self._location or await begin(self._session, str(self._blob.digest))
                self._location = ""
                await self._send(location, 0, self._blob.size, final=True)
                return
            if not self._location:
                self._location, self.kept = await begin(self._session, str(self._blob.digest)), 0
            else:
                await self._ask()
            while self.kept < self._blob.size:
                end = min(self.kept + CHUNK, self._blob.size)
                await self._send(self._location, self.kept, end, final=False)
                self.kept = end
            await _finish(self._session, self._location, self._blob, b"")
        except (httpx.TransportError, Broken):
            self._broken = True
            self._tell(self.kept)
            raise

    async def _ask(self) -> None:
        """How far the upload has come; begins a new one where the registry has forgotten it."""
        async with self._session.opened(self._location) as response:
            if response.status_code in (404, 410):
                self._location = ""
            else:
                await check_written(response, f"{self._session.where} does not take {self._blob.digest}")
                found = re.fullmatch(r"(?:bytes=)?0-(\d+)", response.headers.get("Range", ""))
                at = int(found[1]) + 1 if found else 0
                self.kept = at if at > 1 else 0  # "0-0" is what an upload without a byte says
                self._location = _location(response, self._location)
        if not self._location:
            self._location, self.kept = await begin(self._session, str(self._blob.digest)), 0
        self._tell(self.kept)

    async def _send(self, location: str, start: int, end: int, *, final: bool) -> None:
        headers = {"Content-Type": _BINARY, "Content-Length": str(end - start)}
        if final:
            url, method = _with_digest(location, self._blob), "PUT"
        else:
            url, method = location, "PATCH"
            headers["Content-Range"] = f"{start}-{end - 1}"
        async with self._session.opened(
            url, headers, method=method, body=lambda: _FileBody(self._path, start, end, self._tell)
        ) as response:
            if not final and response.status_code in (404, 410, 416):
                if response.status_code != 416:
                    self._location = ""
                raise Broken(f"the registry lost its place in the upload (HTTP {response.status_code})")
            await check_written(response, f"{self._session.where} does not take {self._blob.digest}")
            if not final:
                self._location = _location(response, location)

    def _tell(self, count: int) -> None:
        self._advance(count - self._told)
        self._told = count


class _FileBody(httpx.AsyncByteStream):
    """Bytes ``start`` to ``end`` of a file; tells how far it is read."""

    def __init__(self, path: Path, start: int, end: int, tell: Callable[[int], None]) -> None:
        self._file: BinaryIO = path.open("rb", buffering=0)
        self._file.seek(start)
        self._at, self._end, self._tell = start, end, tell

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        self._tell(self._at)
        piece = await trio.to_thread.run_sync(self._file.read, min(self._end - self._at, _PIECE))
        if not piece:
            self._file.close()
            raise StopAsyncIteration
        self._at += len(piece)
        return piece

    async def aclose(self) -> None:
        self._file.close()


async def begin(session: Session, what: str) -> str:
    """The URL of a new upload."""
    async with session.opened("blobs/uploads/", {"Content-Length": "0"}, method="POST") as response:
        await check_written(response, f"{session.where} does not take {what}")
        return _location(response)


async def _finish(session: Session, location: str, blob: Descriptor, data: bytes) -> None:
    headers = {"Content-Type": _BINARY, "Content-Length": str(len(data))}
    async with session.opened(_with_digest(location, blob), headers, method="PUT", body=lambda: httpx.ByteStream(data)) as response:
        await check_written(response, f"{session.where} does not take {blob.digest}")


def _location(response: httpx.Response, default: str = "") -> str:
    """Where to go on: absolute, or relative to the request."""
    said = response.headers.get("Location", "")
    if not said:
        if default:
            return default
        raise RegistryUnavailable(f"{response.request.url.host} begins an upload and does not say where")
    return str(response.request.url.join(said))


def _with_digest(location: str, blob: Descriptor) -> str:
    return str(httpx.URL(location).copy_merge_params({"digest": str(blob.digest)}))
