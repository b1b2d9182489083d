"""Everything that can be checked of an image: blocks, documents, layers, their tables of contents, and the chunks that those name."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import trio
import zstandard
from isal import igzip

from ipfs_store.cids import Cid, format_cid
from ipfs_store.dag.file import UnixfsFile
from ipfs_store.dag.walk import walk
from ipfs_store.errors import BlobMismatch, ChunkMismatch, IpfsStoreError, NotSeekable, StorageFailed, TocMismatch, Unavailable
from ipfs_store.formats.chunks import cut_chunk, decode_stream, verify_chunk
from ipfs_store.formats.layer import Layer, open_layer
from ipfs_store.formats.limits import MAX_ZSTD_WINDOW
from ipfs_store.formats.names import GZIP_MAGIC, ZSTD_MAGIC, ZSTD_SKIPPABLE_MAGIC
from ipfs_store.formats.tarball import read
from ipfs_store.formats.toc import Chunk, Entry
from ipfs_store.images.identity import identify
from ipfs_store.images.layer_files import open_lazy
from ipfs_store.images.model import NoProgress, Progress
from ipfs_store.images.pull import RemoteLayer, copy_file, resolve
from ipfs_store.images.referrers import fetch_referrers
from ipfs_store.nodes.interface import Node
from ipfs_store.oci import Digest
from ipfs_store.oci.media_types import is_layer

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_PIECE = 4 << 20
_RUN = 8 << 20  # bytes of a blob that are read at a time, streams that cross the border excepted


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
        blob = await UnixfsFile.open(self.get, layer.cid)
        if blob.size != descriptor.size:
            raise BlobMismatch(f"it has {blob.size} bytes in IPFS, its descriptor says {descriptor.size}")
        stream = _BlobStream(blob, lambda count: self._progress.advance(item, count))
        digest, diff_id = await trio.to_thread.run_sync(stream.digests)
        if digest != descriptor.digest:
            raise BlobMismatch(f"its bytes have the digest {digest}")
        if not is_layer(descriptor.media_type):
            return
        if diff_id != layer.diff_id:
            raise BlobMismatch(f"uncompressed it has the digest {diff_id}, the image's config says {layer.diff_id}")
        try:
            _, opened = await open_lazy(self, layer)
            inside = await open_layer(blob, descriptor.annotations) if layer.toc is not None else opened
        except NotSeekable:
            if layer.toc is not None:
                raise
            return
        if inside.toc.digest != opened.toc.digest:
            raise TocMismatch(f"its TOC object holds a TOC of digest {opened.toc.digest}, the layer one of {inside.toc.digest}")
        await self._chunks(blob, opened)

    async def _chunks(self, blob: UnixfsFile, layer: Layer) -> None:
        check = _ChunkCheck(layer)
        for run in _runs(layer):
            start, end = run[0][1].offset, max(chunk.end for _, chunk in run)
            data = await blob.read(start, end - start)
            await trio.to_thread.run_sync(check.run, run, start, data)
            self._done.chunks += len(run)
        self._done.files += sum(entry.type == "reg" for entry in layer.toc.entries)

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


class _BlobStream(io.RawIOBase):
    """A blob of IPFS for readers that want a file, in a worker thread; hashed as it is read."""

    def __init__(self, blob: UnixfsFile, advance: Callable[[int], None]) -> None:
        self._blob = blob
        self._advance = advance
        self._at = 0
        self._hasher = hashlib.sha256()

    def digests(self) -> tuple[Digest, Digest]:
        """Of the blob as it is, and uncompressed; raises InvalidLayer, and what the blob raises."""
        inner = hashlib.sha256()
        reader = io.BufferedReader(self, _PIECE)
        magic = reader.peek(4)[:4]
        tar: BinaryIO = reader
        if magic[:2] == GZIP_MAGIC:
            tar = cast(BinaryIO, igzip.open(reader, "rb"))  # type: ignore[no-untyped-call]
        elif magic == ZSTD_MAGIC or (magic[:1] >= b"\x50" and magic[1:] == ZSTD_SKIPPABLE_MAGIC[1:]):
            decoder = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
            tar = cast(BinaryIO, decoder.stream_reader(reader, read_across_frames=True))
        while piece := read(tar, _PIECE):
            inner.update(piece)
        while reader.read(_PIECE):  # padding behind the last member belongs to the blob
            pass
        return Digest(self._hasher.hexdigest()), Digest(inner.hexdigest())

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """The next bytes."""
        view = memoryview(buffer)
        count = min(len(view), self._blob.size - self._at)
        data = trio.from_thread.run(self._blob.read, self._at, count)
        self._hasher.update(data)
        view[:count] = data
        self._at += count
        trio.from_thread.run_sync(self._advance, count)
        return count


def _runs(layer: Layer) -> Iterator[list[tuple[Entry, Chunk]]]:
    """All chunks, as they lie in the blob, a few MiB at a time."""
    run: list[tuple[Entry, Chunk]] = []
    pairs = ((entry, chunk) for entry in layer.toc.entries for chunk in entry.chunks if chunk.end > chunk.offset)
    for entry, chunk in sorted(pairs, key=lambda pair: (pair[1].offset, pair[1].inner_offset)):
        if run and chunk.end - run[0][1].offset > _RUN and chunk.offset != run[-1][1].offset:
            yield run
            run = []
        run.append((entry, chunk))
    if run:
        yield run


class _ChunkCheck:
    """Checks chunks against the TOC, and files of several chunks against their digests. CPU work."""

    def __init__(self, layer: Layer) -> None:
        self._kind = layer.kind
        self._files: dict[str, tuple[int, Any]] = {}  # path -> (bytes so far, their hash)

    def run(self, run: Sequence[tuple[Entry, Chunk]], start: int, data: bytes) -> None:
        """``data``: the blob from ``start``. Raises InvalidLayer, ChunkMismatch."""
        needed: dict[int, int] = {}
        ends: dict[int, int] = {}
        for _, chunk in run:
            needed[chunk.offset] = max(needed.get(chunk.offset, 0), chunk.inner_offset + chunk.size)
            ends[chunk.offset] = max(ends.get(chunk.offset, 0), chunk.end)
        at, stream = -1, b""
        for entry, chunk in run:
            if chunk.offset != at:
                at = chunk.offset
                stream = decode_stream(self._kind, data[at - start : ends[at] - start], needed[at])
            piece = cut_chunk(stream, chunk)
            verify_chunk(entry.path, chunk, piece)
            if len(entry.chunks) > 1 and entry.digest:
                self._file(entry, chunk, piece)

    def _file(self, entry: Entry, chunk: Chunk, piece: bytes) -> None:
        size, hasher = self._files.pop(entry.path, (0, None))
        if chunk.file_offset != size:
            return  # a writer that put the chunks of a file elsewhere than in order: each is checked by itself
        hasher = hasher or hashlib.sha256()
        hasher.update(piece)
        size += chunk.size
        if size < entry.size:
            self._files[entry.path] = (size, hasher)
        elif f"sha256:{hasher.hexdigest()}" != entry.digest:
            raise ChunkMismatch(
                f"{entry.path!r}: its chunks make a file of digest sha256:{hasher.hexdigest()}, the TOC says {entry.digest}"
            )
