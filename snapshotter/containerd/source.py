"""Images of containerd's content store, for whoever moves images (``containerd:NAME``)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType

import trio

from ipfs_store.errors import ImageNotFound
from ipfs_store.formats.blob import RangeReader
from ipfs_store.images.model import Incoming
from ipfs_store.images.sources import SourceOptions
from ipfs_store.images.sources.incoming import arrived, arriving, checking
from ipfs_store.images.sources.scratch import check_file
from ipfs_store.oci import Descriptor, Digest
from snapshotter.containerd.connection import Connection, connect, leased
from snapshotter.containerd.content import ContentStore
from snapshotter.containerd.errors import ContainerdNotFound
from snapshotter.containerd.local import document
from snapshotter.containerd.records import Images


class ContainerdImage:
    """An image that containerd has, as ``ipfs_store.images.model.Image``; also an async context manager that closes it."""

    def __init__(self, connection: Connection, name: str, root: Descriptor, closing: ExitStack, folder: Path) -> None:
        self.name = name
        self.root = root
        self._connection = connection
        self._content = ContentStore(connection)
        self._closing = closing
        self._folder = folder

    async def fetch(self, descriptor: Descriptor) -> bytes:
        """A small blob; raises ImageNotFound, BlobMismatch."""
        return await trio.to_thread.run_sync(document, self._connection, descriptor)

    @asynccontextmanager
    async def open_blob(self, descriptor: Descriptor) -> AsyncIterator[Path]:
        """The layer, verified, until the context ends; raises ImageNotFound (a layer that was mounted lazily is not there), BlobMismatch."""
        handle = await trio.to_thread.run_sync(self._open, descriptor)
        if handle is None:
            async with arrived(self._pieces(descriptor), descriptor, "containerd", self._folder) as path:
                yield path
            return
        try:
            path = Path(f"/proc/{os.getpid()}/fd/{handle}")
            await trio.to_thread.run_sync(check_file, path, descriptor, "containerd")
            yield path
        finally:
            os.close(handle)

    @asynccontextmanager
    async def open_incoming(self, descriptor: Descriptor, nursery: trio.Nursery) -> AsyncIterator[Incoming]:
        """See ``incoming.Early``: containerd's own file where we can read it, else what the socket brings, as it comes."""
        handle = await trio.to_thread.run_sync(self._open, descriptor)
        if handle is None:
            ranges = _Blob(self._content, descriptor.digest, descriptor.size)
            pieces = self._pieces(descriptor)
            async with arriving(pieces, ranges, descriptor, "containerd", self._folder, nursery) as incoming:
                yield incoming
            return
        try:
            async with checking(Path(f"/proc/{os.getpid()}/fd/{handle}"), descriptor, "containerd", nursery) as incoming:
                yield incoming
        finally:
            os.close(handle)

    async def aclose(self) -> None:
        """Close the connection, and let containerd collect the image again."""
        await trio.to_thread.run_sync(self._closing.close)

    async def __aenter__(self) -> ContainerdImage:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with trio.CancelScope(shield=True):
            await self.aclose()

    def _open(self, descriptor: Descriptor) -> int | None:
        try:
            self._content.info(descriptor.digest)
        except ContainerdNotFound as error:
            raise self._missing(descriptor) from error
        return self._content.open_file(descriptor.digest, descriptor.size)

    def _pieces(self, descriptor: Descriptor) -> Iterator[bytes]:
        try:
            yield from self._content.pieces(descriptor.digest)
        except ContainerdNotFound as error:  # collected meanwhile
            raise self._missing(descriptor) from error

    def _missing(self, descriptor: Descriptor) -> ImageNotFound:
        return ImageNotFound(
            f"containerd does not have layer {descriptor.digest} of {self.name!r}",
            hint="an image that was pulled lazily has no layers to push; push it from where it came from, or pull it eagerly",
        )


def open_source(name: str, options: SourceOptions | None = None) -> ContainerdImage:
    """The image that containerd calls ``name``; kept from garbage collection until it is closed.

    Raises ImageNotFound, ContainerdUnavailable.
    """
    options = options or SourceOptions()
    with ExitStack() as stack:
        connection = stack.enter_context(leased(stack.enter_context(connect(options.address, options.namespace))))
        root = Images(connection).get(name)
        return ContainerdImage(connection, name, root, stack.pop_all(), options.folder)


@asynccontextmanager
async def open_blob(digest: str, options: SourceOptions) -> AsyncIterator[RangeReader]:
    """A blob of the content store by its digest; raises InvalidDigest, ImageNotFound, ContainerdUnavailable."""
    parsed = Digest.parse(digest)
    with connect(options.address, options.namespace) as connection:
        content = ContentStore(connection)
        try:
            size = (await trio.to_thread.run_sync(content.info, parsed)).size
        except ContainerdNotFound as error:
            raise ImageNotFound(
                f"containerd does not have {digest} in namespace {connection.namespace!r}", hint="`ctr content ls` lists what it has"
            ) from error
        yield _Blob(content, parsed, size)


class _Blob:
    """A RangeReader."""

    def __init__(self, content: ContentStore, digest: Digest, size: int) -> None:
        self.size = size
        self._content = content
        self._digest = digest

    async def read(self, offset: int, length: int) -> bytes:
        return await trio.to_thread.run_sync(self._content.part, self._digest, offset, length) if length else b""
