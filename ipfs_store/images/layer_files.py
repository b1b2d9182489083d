"""A layer's files out of IPFS: by its TOC and the leaves that a file lies in, or, where it has none, out of the whole layer."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import BinaryIO

import trio

from ipfs_store.cids import Cid
from ipfs_store.dag.file import UnixfsFile
from ipfs_store.errors import BlobMismatch, InvalidLayer, NotSeekable
from ipfs_store.formats.detached import decode_detached
from ipfs_store.formats.layer import Layer, open_layer
from ipfs_store.formats.limits import MAX_TOC
from ipfs_store.formats.names import ANNOTATION_TOC_DIGEST
from ipfs_store.formats.reader import LayerReader, LazyReader, PlainReader
from ipfs_store.images.filesystem import ImageFiles, LayerFiles
from ipfs_store.images.pull import RemoteLayer, copy_blob, resolve
from ipfs_store.images.sources.options import scratch_folder
from ipfs_store.images.sources.scratch import Scratch
from ipfs_store.nodes.interface import Blocks
from ipfs_store.oci import Platform


async def open_lazy(blocks: Blocks, layer: RemoteLayer) -> tuple[UnixfsFile, Layer]:
    """A layer's blob and TOC: its own object where the image root names one, else out of the end of the blob.

    Raises NotSeekable (it has none), InvalidLayer, TocMismatch, BlobMismatch, and what ``blocks`` raises.
    """
    blob = await UnixfsFile.open(blocks.get, layer.cid)
    if blob.size != layer.descriptor.size:
        raise BlobMismatch(f"layer {layer.descriptor.digest} has {blob.size} bytes in IPFS, its descriptor says {layer.descriptor.size}")
    annotations = layer.descriptor.annotations
    if layer.toc is None:
        return blob, await open_layer(blob, annotations)
    file = await UnixfsFile.open(blocks.get, layer.toc)
    if file.size > MAX_TOC:
        raise InvalidLayer(f"the TOC of layer {layer.descriptor.digest} has {file.size} bytes in IPFS, over the limit of {MAX_TOC}")
    data = await file.read(0, file.size)
    expected = annotations.get(ANNOTATION_TOC_DIGEST, "")
    return blob, await trio.to_thread.run_sync(lambda: decode_detached(data, expected=expected).open(blob.size))


@asynccontextmanager
async def open_layers(blocks: Blocks, layers: Sequence[RemoteLayer]) -> AsyncIterator[list[LayerFiles]]:
    """The layers of an image, lowest first. One without a TOC is fetched whole, into ``$TMPDIR``."""
    opened: list[LayerFiles] = []
    async with contextlib.AsyncExitStack() as stack:
        for layer in layers:
            reader: LayerReader
            try:
                reader = LazyReader(*await open_lazy(blocks, layer))
            except NotSeekable:
                reader = await stack.enter_async_context(_plain(blocks, layer))
            opened.append(LayerFiles(await reader.entries(), reader))
        yield opened


@asynccontextmanager
async def open_files(
    blocks: Blocks, cid: Cid, *, platforms: Sequence[Platform] = (), timeout: float | None = None
) -> AsyncIterator[ImageFiles]:
    """The files of an image, of this machine's platform or the one that is given; raises as ``resolve`` and ``open_lazy`` do."""
    image = await resolve(blocks, cid, platforms=platforms, timeout=timeout)
    async with open_layers(blocks, image.manifests[0].layers) as layers:
        yield await trio.to_thread.run_sync(ImageFiles, layers)


@asynccontextmanager
async def _plain(blocks: Blocks, layer: RemoteLayer) -> AsyncIterator[PlainReader]:
    scratch = await trio.to_thread.run_sync(Scratch, scratch_folder())
    try:

        async def write(piece: bytes) -> None:
            await trio.to_thread.run_sync(scratch.write, piece)

        await copy_blob(blocks, layer, write)
        scratch.flush()
        with scratch.path.open("rb") as file:
            blob = _FileBlob(file, layer.descriptor.size)
            yield PlainReader(blob, await blob.read(0, min(4, blob.size)))
    finally:
        scratch.close()


class _FileBlob:
    """See ``formats.blob.RangeReader``: a file that was written a moment ago, so that reading it does not wait for the disk."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.size = size

    async def read(self, offset: int, length: int) -> bytes:
        """See ``RangeReader``."""
        return os.pread(self._file.fileno(), length, offset)
