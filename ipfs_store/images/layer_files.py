"""A layer's files out of IPFS: by its TOC and the leaves that a file lies in, or, where it has none, out of the whole layer."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager

import trio

from ipfs_store.cids import Cid
from ipfs_store.dag.file import UnixfsFile
from ipfs_store.errors import BlobMismatch, InvalidLayer, NotSeekable
from ipfs_store.formats.chunks import cut_chunk, decode_stream, verify_chunk
from ipfs_store.formats.detached import decode_detached
from ipfs_store.formats.entries import normalise
from ipfs_store.formats.layer import Layer, open_layer
from ipfs_store.formats.limits import MAX_TOC
from ipfs_store.formats.mapped import members, unpacked
from ipfs_store.formats.names import ANNOTATION_TOC_DIGEST
from ipfs_store.formats.toc import Chunk, Entry
from ipfs_store.images.filesystem import ImageFiles, LayerFiles
from ipfs_store.images.pull import RemoteLayer, copy_blob, resolve
from ipfs_store.images.sources.options import scratch_folder
from ipfs_store.images.sources.scratch import Scratch
from ipfs_store.nodes.interface import Blocks
from ipfs_store.oci import Platform

_CHUNKS = 16  # of a file, asked for at once: 4 MiB at 256 KiB, some 32 leaves in flight
_TOGETHER = 64 << 20  # of the blob, and so in memory: chunks of a foreign TOC may be of any size
_PIECE = 4 << 20


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


class LazyFiles:
    """See ``filesystem.LayerFiles``."""

    def __init__(self, blob: UnixfsFile, layer: Layer) -> None:
        self._blob = blob
        self._layer = layer

    @property
    def entries(self) -> Sequence[Entry]:
        """See ``LayerFiles``."""
        return self._layer.toc.entries

    async def read(self, entry: Entry) -> AsyncGenerator[bytes, None]:
        """See ``LayerFiles``; raises InvalidLayer, ChunkMismatch, and what the blob raises."""
        for at in range(0, len(entry.chunks), _CHUNKS):
            chunks = entry.chunks[at : at + _CHUNKS]
            # Chunks of a file follow on each other in the blob as a rule: one read of them all asks for all of their leaves at once.
            start, end = min(chunk.offset for chunk in chunks), max(chunk.end for chunk in chunks)
            together = end - start <= min(2 * sum(chunk.end - chunk.offset for chunk in chunks), _TOGETHER)
            data = await self._blob.read(start, end - start) if together else b""
            for chunk in chunks:
                length = chunk.end - chunk.offset
                stream = data[chunk.offset - start :][:length] if together else await self._blob.read(chunk.offset, length)
                yield await trio.to_thread.run_sync(self._decode, stream, entry, chunk)

    def _decode(self, stream: bytes, entry: Entry, chunk: Chunk) -> bytes:
        piece = cut_chunk(decode_stream(self._layer.kind, stream, chunk.inner_offset + chunk.size) if stream else b"", chunk)
        verify_chunk(entry.path, chunk, piece)
        return piece


class PlainFiles:
    """See ``filesystem.LayerFiles``: those of a tar that lies in a file."""

    def __init__(self, entries: Sequence[Entry], payloads: Mapping[str, memoryview]) -> None:
        self.entries = entries
        self._payloads = payloads

    async def read(self, entry: Entry) -> AsyncGenerator[bytes, None]:
        """See ``LayerFiles``."""
        # By digest: a hard link asks under another path than the entry's.
        payload = self._payloads[entry.digest]
        for at in range(0, len(payload), _PIECE):
            yield bytes(payload[at : at + _PIECE])


@asynccontextmanager
async def open_layers(blocks: Blocks, layers: Sequence[RemoteLayer]) -> AsyncIterator[list[LayerFiles]]:
    """The layers of an image, lowest first. One without a TOC is fetched whole, into ``$TMPDIR``."""
    opened: list[LayerFiles] = []
    async with contextlib.AsyncExitStack() as stack:
        for layer in layers:
            try:
                opened.append(LazyFiles(*await open_lazy(blocks, layer)))
            except NotSeekable:
                opened.append(await stack.enter_async_context(_plain(blocks, layer)))
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
async def _plain(blocks: Blocks, layer: RemoteLayer) -> AsyncIterator[PlainFiles]:
    folder = scratch_folder()
    scratch = await trio.to_thread.run_sync(Scratch, folder)
    try:

        async def write(piece: bytes) -> None:
            await trio.to_thread.run_sync(scratch.write, piece)

        await copy_blob(blocks, layer, write)
        scratch.flush()
        context = unpacked(scratch.path, folder)
        tar = await trio.to_thread.run_sync(context.__enter__)
        try:
            yield await trio.to_thread.run_sync(_read_tar, tar)
        finally:
            context.__exit__(None, None, None)
    finally:
        scratch.close()


def _read_tar(tar: memoryview) -> PlainFiles:
    entries: dict[str, Entry] = {"": Entry(path="", type="dir", mode=0o755, uid=0, gid=0, mtime=0)}
    payloads: dict[str, memoryview] = {}
    for member in members(tar):
        trio.from_thread.check_cancelled()
        header = member.header
        regular, device = header.type == "reg", header.type in ("char", "block")
        digest = f"sha256:{hashlib.sha256(member.payload).hexdigest()}" if regular else ""
        for folder in _parents(member.path):
            entries.setdefault(folder, Entry(path=folder, type="dir", mode=0o755, uid=0, gid=0, mtime=0))
        entries[member.path] = Entry(
            path=member.path, type=header.type, mode=header.mode & 0o7777, uid=header.uid, gid=header.gid,
            mtime=header.mtime, mtime_ns=header.mtime_ns, size=header.size,
            link=header.link if header.type == "symlink" else normalise(header.link) if header.type == "hardlink" else "",
            dev_major=header.dev_major if device else 0, dev_minor=header.dev_minor if device else 0,
            xattrs=header.xattrs, digest=digest,
        )  # fmt: skip
        if regular:
            payloads[digest] = member.payload
    return PlainFiles(list(entries.values()), payloads)


def _parents(path: str) -> Iterator[str]:
    at = path.find("/")
    while at >= 0:
        yield path[:at]
        at = path.find("/", at + 1)
