"""An image out of the files of a folder or archive: small documents that may have been made, blobs by their digests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from ipfs_store.errors import ImageNotFound
from ipfs_store.images.model import Incoming
from ipfs_store.images.sources.files import Files
from ipfs_store.images.sources.incoming import checking
from ipfs_store.images.sources.scratch import check_bytes, check_file
from ipfs_store.oci import Descriptor, Digest
from ipfs_store.oci.manifest import MAX_DOCUMENT


class StoredImage:
    """See ``images.model.Image``. Takes ``files`` over: they are closed with it."""

    def __init__(self, files: Files, name: str, root: Descriptor, made: Mapping[Digest, bytes], paths: Mapping[Digest, str]) -> None:
        """``made``: documents that the source does not have as files; ``paths``: blobs elsewhere than an OCI layout has them."""
        self.name = name
        self.root = root
        self._files = files
        self._made = made
        self._paths = paths

    async def fetch(self, descriptor: Descriptor) -> bytes:
        """A small blob; raises ImageNotFound, BlobMismatch."""
        made = self._made.get(descriptor.digest)
        if made is not None:
            return made
        data = await trio.to_thread.run_sync(self._files.read, self._path(descriptor), MAX_DOCUMENT)
        if data is None:
            raise self._missing(descriptor)
        return check_bytes(data, descriptor, self._files.where)

    @asynccontextmanager
    async def open_blob(self, descriptor: Descriptor) -> AsyncIterator[Path]:
        """A blob as a file: that of a folder itself, a copy out of an archive; raises ImageNotFound, BlobMismatch, StorageFailed."""
        async with self._unchecked(descriptor) as path:
            await trio.to_thread.run_sync(check_file, path, descriptor, self._files.where)
            yield path

    @asynccontextmanager
    async def open_incoming(self, descriptor: Descriptor, nursery: trio.Nursery) -> AsyncIterator[Incoming]:
        """See ``incoming.Early``."""
        async with self._unchecked(descriptor) as path, checking(path, descriptor, self._files.where, nursery) as incoming:
            yield incoming

    async def aclose(self) -> None:
        """Close the files."""
        self._files.close()

    @asynccontextmanager
    async def _unchecked(self, descriptor: Descriptor) -> AsyncIterator[Path]:
        file = self._files.open(self._path(descriptor))
        if file is None:
            raise self._missing(descriptor)
        path = await trio.to_thread.run_sync(file.__enter__)
        try:
            yield path
        finally:
            file.__exit__(None, None, None)

    def _path(self, descriptor: Descriptor) -> str:
        return self._paths.get(descriptor.digest) or f"blobs/sha256/{descriptor.digest.hex}"

    def _missing(self, descriptor: Descriptor) -> ImageNotFound:
        platform = f" ({descriptor.platform})" if descriptor.platform is not None else ""
        return ImageNotFound(
            f"{self._files.where} does not have blob {descriptor.digest}{platform}",
            hint="archives of one platform list the others too: choose with --platform" if platform else None,
        )
