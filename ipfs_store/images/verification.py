"""Everything that can be checked of an image: blocks, documents, layers, their tables of contents, and the chunks that those name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ipfs_store.cids import Cid, format_cid
from ipfs_store.dag.file import UnixfsFile
from ipfs_store.dag.walk import walk
from ipfs_store.errors import IpfsStoreError, NotSeekable, StorageFailed, TocMismatch, Unavailable
from ipfs_store.formats.layer import open_layer
from ipfs_store.formats.reader import LayerReader, LazyReader, PlainReader
from ipfs_store.images.identity import identify
from ipfs_store.images.layer_files import open_lazy
from ipfs_store.images.model import NoProgress, Progress
from ipfs_store.images.pull import RemoteLayer, copy_blob, copy_file, resolve
from ipfs_store.images.referrers import fetch_referrers
from ipfs_store.nodes.interface import Node
from ipfs_store.oci.media_types import is_layer


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it should be."""

    what: str
    """The CID or digest it is about."""
    message: str


@dataclass(slots=True)
class Verified:
    """What was looked at."""

    name: str = ""
    blocks: int = 0
    bytes: int = 0
    """Of the blocks."""
    documents: int = 0
    layers: int = 0
    files: int = 0
    chunks: int = 0
    problems: list[Problem] = field(default_factory=list)


async def verify(node: Node, cid: Cid, *, timeout: float | None = None, progress: Progress | None = None) -> Verified:
    """Read all of the image, or other DAG, ``cid`` and check it; what the node lacks is fetched. What is wrong is listed, not raised.

    Blocks against their CIDs; indexes, manifests, configs and referrers against digests and sizes; each layer against its digest and, uncompressed,
    its DiffID; its TOC object against the TOC in the layer; every chunk and every file against the TOC. Memory: a run of 8 MiB of a layer,
    decompressed. Raises NodeUnavailable, StorageFailed.
    """
    done = Verified()
    work = _Verification(node, timeout, done, progress or NoProgress())
    await work.blocks(cid)
    if not done.problems:  # what is below a block that is lost cannot be had, and would be told again for each of its layers
        await work.image(cid)
    return done


class _Verification:
    def __init__(self, node: Node, timeout: float | None, done: Verified, progress: Progress) -> None:
        self._node = node
        self._timeout = timeout
        self._done = done
        self._progress = progress

    async def get(self, cid: Cid, *, timeout: float | None = None) -> bytes:
        """See ``Blocks``."""
        return await self._node.get(cid, timeout=self._timeout if timeout is None else timeout)

    async def blocks(self, cid: Cid) -> None:
        """All of the DAG; a node gives no block that does not match its CID."""

        async def visit(_: Cid, block: bytes) -> None:
            self._done.blocks += 1
            self._done.bytes += len(block)

        def failed(block: Cid, error: IpfsStoreError) -> None:
            self._problem(format_cid(block), error)

        try:
            image = await identify(self, cid)
        except IpfsStoreError as error:
            self._problem(format_cid(cid), error)
            return
        self._done.name = image.name
        await walk(self.get, image.roots, visit, failed=failed)

    async def image(self, cid: Cid) -> None:
        """Documents and layers, if it is an image."""
        if not (await identify(self, cid)).is_image:
            return
        try:
            image = await resolve(self, cid, platforms=None)
            referrers = await fetch_referrers(self, image)
        except IpfsStoreError as error:
            self._problem(format_cid(cid), error)
            return
        self._done.documents = len(image.indexes) + 2 * len(image.manifests) + len(referrers)

        async def nothing(_: bytes) -> None:
            pass

        for referrer in referrers:
            for descriptor, place in referrer.blobs.items():
                with self._checked(str(descriptor.digest)):
                    await copy_file(self, descriptor, place, nothing)
        layers = {layer.descriptor.digest: layer for manifest in image.manifests for layer in manifest.layers}
        for digest, layer in layers.items():
            self._done.layers += 1
            self._progress.begin(str(digest), "verify", layer.descriptor.size)
            with self._checked(str(digest)):
                await self._layer(layer)
            self._progress.done(str(digest))

    async def _layer(self, layer: RemoteLayer) -> None:
        descriptor, item = layer.descriptor, str(layer.descriptor.digest)
        if not is_layer(descriptor.media_type):

            async def advance(piece: bytes) -> None:
                self._progress.advance(item, len(piece))

            await copy_blob(self, layer, advance)
            return
        reader = await self._reader(layer)
        found = await reader.verify(
            digest=str(descriptor.digest), diff_id=str(layer.diff_id), advance=lambda count: self._progress.advance(item, count)
        )
        if not reader.lazy:
            return
        self._done.chunks += found.chunks
        self._done.files += sum(entry.type == "reg" for entry in await reader.entries())
        if found.differences:
            more = f" (and {len(found.differences) - 1} more)" if len(found.differences) > 1 else ""
            raise TocMismatch(f"its TOC is not what its tar says: {found.differences[0]}{more}")

    async def _reader(self, layer: RemoteLayer) -> LayerReader:
        try:
            blob, opened = await open_lazy(self, layer)
            inside = await open_layer(blob, layer.descriptor.annotations) if layer.toc is not None else opened
        except NotSeekable:
            if layer.toc is not None:
                raise
            blob = await UnixfsFile.open(self.get, layer.cid)
            return PlainReader(blob, await blob.read(0, min(4, blob.size)))
        if inside.toc.digest != opened.toc.digest:
            raise TocMismatch(f"its TOC object holds a TOC of digest {opened.toc.digest}, the layer one of {inside.toc.digest}")
        return LazyReader(blob, opened)

    @contextmanager
    def _checked(self, what: str) -> Iterator[None]:
        try:
            yield
        except IpfsStoreError as error:
            self._problem(what, error)

    def _problem(self, what: str, error: IpfsStoreError) -> None:
        if isinstance(error, Unavailable | StorageFailed):
            raise error
        self._done.problems.append(Problem(what, error.message))
