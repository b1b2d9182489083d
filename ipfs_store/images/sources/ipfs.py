"""Images that lie in IPFS already, as ``images.model.Image``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from ipfs_store.cids import Cid, format_cid
from ipfs_store.dag.file import UnixfsFile
from ipfs_store.errors import InvalidInput
from ipfs_store.formats.blob import RangeReader
from ipfs_store.images.pull import Places, RemoteLayer, copy_blob, find_image
from ipfs_store.images.sources.options import SourceOptions
from ipfs_store.images.sources.scratch import Scratch
from ipfs_store.nodes.interface import Node
from ipfs_store.oci import Descriptor


async def open_ipfs_image(cid: Cid, options: SourceOptions) -> IpfsImage:
    """The image whose descriptor or root ``cid`` is; raises BlockNotFound, NodeUnavailable, InvalidDescriptor, InvalidDag."""
    if options.node is None:
        raise InvalidInput(f"{format_cid(cid)} is a CID, and there is no node to ask")
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(options.node())
        places, root = await find_image(node.get, cid)
        return IpfsImage(node, places, root, options, stack.pop_all())


class IpfsImage:
    """See ``images.model.Image``."""

    def __init__(self, node: Node, places: Places, root: Descriptor, options: SourceOptions, closing: AsyncExitStack) -> None:
        said = root.annotations
        named = places.root.name if places.root is not None else ""
        self.name = named or said.get("io.containerd.image.name") or said.get("org.opencontainers.image.ref.name", "")
        self.root = root
        self._node = node
        self._places = places
        self._options = options
        self._closing = closing

    async def fetch(self, descriptor: Descriptor) -> bytes:
        """A document; raises BlockNotFound, NodeUnavailable, BlobMismatch, InvalidDescriptor."""
        return await self._places.document(descriptor)

    @asynccontextmanager
    async def open_blob(self, descriptor: Descriptor) -> AsyncIterator[Path]:
        """A layer, fetched into a file without a name; raises BlockNotFound, NodeUnavailable, BlobMismatch, StorageFailed."""
        cid = await self._places.find(descriptor)
        target = await trio.to_thread.run_sync(Scratch, self._options.folder)
        progress, item = self._options.progress, str(descriptor.digest)

        async def write(piece: bytes) -> None:
            await trio.to_thread.run_sync(target.write, piece)
            progress.advance(item, len(piece))

        try:
            progress.begin(item, "fetch", descriptor.size)
            await copy_blob(self._node, RemoteLayer(descriptor, cid, descriptor.digest), write)
            await trio.to_thread.run_sync(target.flush)
            progress.done(item)
            yield target.path
        finally:
            target.close()

    @asynccontextmanager
    async def open_ranges(self, descriptor: Descriptor) -> AsyncIterator[RangeReader]:
        """See ``ranges.Ranged``; every block is checked against its CID."""
        yield await UnixfsFile.open(self._node.get, await self._places.find(descriptor))

    async def aclose(self) -> None:
        """Close the node."""
        await self._closing.aclose()
