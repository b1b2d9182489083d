"""Images of a registry, as ``images.model.Image``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from ipfs_store.formats.blob import RangeReader
from ipfs_store.images.sources.distribution import Registry
from ipfs_store.images.sources.options import SourceOptions
from ipfs_store.images.sources.scratch import Scratch
from ipfs_store.images.sources.session import connect
from ipfs_store.oci import Descriptor, Digest, Reference


async def open_registry_image(text: str, options: SourceOptions) -> RegistryImage:
    """The image that ``text`` (a reference as ``docker pull`` takes it) names.

    Raises InvalidReference, ImageNotFound, RegistryUnavailable (no answer, no permission), InvalidDescriptor, BlobMismatch.
    """
    session = await connect(Reference.parse(text), options.credentials, plain_http=options.plain_http)
    registry = Registry(session)
    try:
        root, data = await registry.resolve()
    except BaseException:
        with trio.CancelScope(shield=True):
            await registry.aclose()
        raise
    return RegistryImage(registry, root, data, options)


class RegistryImage:
    """See ``images.model.Image``."""

    def __init__(self, registry: Registry, root: Descriptor, data: bytes, options: SourceOptions) -> None:
        self.name = str(registry.reference)
        self.reference = registry.reference
        self.root = root
        self._data = data
        self._registry = registry
        self._options = options

    async def referrers(self, subject: Digest) -> Sequence[Descriptor]:
        """See ``referrers.Referring``; raises RegistryUnavailable, InvalidDescriptor."""
        return await self._registry.referrers(subject)

    async def fetch(self, descriptor: Descriptor) -> bytes:
        """A small blob; raises ImageNotFound, BlobMismatch, RegistryUnavailable."""
        if descriptor.digest == self.root.digest:
            return self._data
        return await self._registry.document(descriptor)

    @asynccontextmanager
    async def open_blob(self, descriptor: Descriptor) -> AsyncIterator[Path]:
        """A layer, downloaded into a file without a name; raises ImageNotFound, BlobMismatch, RegistryUnavailable, StorageFailed."""
        target = await trio.to_thread.run_sync(Scratch, self._options.folder)
        progress, item = self._options.progress, str(descriptor.digest)
        try:
            progress.begin(item, "fetch", descriptor.size)
            await self._registry.download(descriptor, target, lambda count: progress.advance(item, count))
            progress.done(item)
            yield target.path
        finally:
            target.close()

    @asynccontextmanager
    async def open_ranges(self, descriptor: Descriptor) -> AsyncIterator[RangeReader]:
        """See ``ranges.Ranged``."""
        yield _Ranges(self._registry, descriptor)

    async def aclose(self) -> None:
        """Close connections."""
        await self._registry.aclose()


class _Ranges:
    """A layer in the registry, as a RangeReader; raises ImageNotFound, RegistryUnavailable."""

    def __init__(self, registry: Registry, descriptor: Descriptor) -> None:
        self.size = descriptor.size
        self._registry = registry
        self._descriptor = descriptor

    async def read(self, offset: int, length: int) -> bytes:
        return await self._registry.part(self._descriptor, offset, length) if length else b""
