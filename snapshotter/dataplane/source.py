"""Layers out of an IPFS node."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import trio

from ipfs_store.cids import RAW, Cid, codec_of, parse_cid
from ipfs_store.dag.file import GetBlock, UnixfsFile, cut
from ipfs_store.errors import InvalidInput, InvalidLayer, NotFound, VerificationFailed
from ipfs_store.formats.detached import DetachedToc, decode_detached
from ipfs_store.formats.footer import TocLocation
from ipfs_store.formats.layer import load_toc, open_layer
from ipfs_store.formats.limits import MAX_TOC
from ipfs_store.nodes.interface import Node
from ipfs_store.nodes.open import open_node
from snapshotter.cache import RecentChunks
from snapshotter.dataplane.build import build_tree
from snapshotter.dataplane.layers import Blob, Counters, Opened
from snapshotter.dataplane.server import LayerSource

_log = logging.getLogger(__name__)

# A leaf of 128 KiB to 1 MiB holds the streams of some dozens of small files, which are read one soon after the other: without these, the
# leaf would be read and hashed again for each (measured on a Debian image: 24 times its bytes). Kept by all layers together.
RECENT_BLOCK_BYTES = 16 << 20
TOC_OBJECT_SECONDS = 10.0
"""For the TOC object to come. Whoever has the layer has it too, as a rule; where nobody has, there is time left for the layer itself."""
# How far to read ahead over leaves that are on the disk, where small files are read one after the other: a lookup costs some 0.5 ms besides
# its bytes, 256 KiB of leaves take 4 ms with a hundred files put into the store, beside a reader who is busy with those before.
AHEAD_FIRST = 64 << 10
AHEAD_MOST = 512 << 10
# A reader of a directory's files skips some, and what lies between them.
AHEAD_GAP = 128 << 10


class NodeSource:
    """Opens layers by the CID of their UnixFS file."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._blocks = RecentChunks[bytes](RECENT_BLOCK_BYTES)

    async def open(self, cid: str, toc_digest: str, counters: Counters, *, toc: str = "") -> Opened:
        """See `server.LayerSource`; raises InvalidCid, InvalidDag, BlockNotFound, NodeUnavailable, NotSeekable, InvalidLayer, TocMismatch."""
        get = self._getter(counters)
        blob = LayerBlob(self._node, get, counters, parse_cid(cid))
        detached = await self._detached(get, toc, toc_digest)
        layer = await trio.to_thread.run_sync(detached.open) if detached else await open_layer(await blob.opened(), toc_digest=toc_digest)
        tree = await trio.to_thread.run_sync(build_tree, layer.toc)
        return Opened(tree, blob, layer.decode)

    async def load_toc(self, cid: str, toc_digest: str, counters: Counters, *, toc: str = "") -> tuple[TocLocation, bytes]:
        """See `server.LayerSource`; raises what `open` does."""
        get = self._getter(counters)
        detached = await self._detached(get, toc, toc_digest)
        if detached is not None:
            return TocLocation(detached.kind, detached.payload_end, 0, detached.payload_end), detached.data
        return await load_toc(await UnixfsFile.open(get, parse_cid(cid)), toc_digest=toc_digest)

    async def _detached(self, get: GetBlock, toc: str, toc_digest: str) -> DetachedToc | None:
        """The TOC from its object, one or two requests instead of four or more; None where it is to be looked for in the layer.

        Only with a digest to hold it to: what is built of a TOC without one is kept under the layer's CID, for which the object cannot speak.
        """
        if not toc or not toc_digest:
            return None
        why = f"it did not come within {TOC_OBJECT_SECONDS:g} s"
        with trio.move_on_after(TOC_OBJECT_SECONDS):
            try:
                file = await UnixfsFile.open(get, parse_cid(toc))
                if file.size > MAX_TOC:
                    raise InvalidLayer(f"an object of {file.size} bytes is over the limit of {MAX_TOC}")
                data = await file.read(0, file.size)
                return await trio.to_thread.run_sync(partial(decode_detached, data, expected=toc_digest))
            except (InvalidInput, NotFound, VerificationFailed) as error:
                why = error.message
        _log.warning("the TOC object %s is of no use, the layer's own TOC is read: %s", toc, why)
        return None

    def blob(self, cid: str, counters: Counters) -> Blob:
        """See `server.LayerSource`; raises InvalidCid."""
        return LayerBlob(self._node, self._getter(counters), counters, parse_cid(cid))

    def _getter(self, counters: Counters) -> GetBlock:
        async def get(wanted: Cid) -> bytes:
            data = self._blocks.get(wanted)
            if data is None:
                data = await self._node.get(wanted)
                counters.fetched += len(data)
                self._blocks.put(wanted, data)
            return data

        return get


@runtime_checkable
class LocalBlocks(Protocol):
    """A node whose blocks on the disk are read at once, many at a time."""

    async def local_many(self, cids: Sequence[Cid]) -> list[bytes | None]: ...  # noqa: D102

    def unverified(self, cids: Sequence[Cid]) -> list[bytes | memoryview | None]: ...  # noqa: D102

    async def local_run(self, cids: Sequence[Cid]) -> int: ...  # noqa: D102


class LayerBlob:
    """A layer's UnixFS file, opened when it is read for the first time: a layer whose metadata are kept is mounted without any network."""

    def __init__(self, node: Node, get: GetBlock, counters: Counters, cid: Cid) -> None:
        self._local = node if isinstance(node, LocalBlocks) else None
        self._get = get
        self._counters = counters
        self._cid = cid
        self._file: UnixfsFile | None = None
        self._last = self._ahead_start = self._ahead_end = 1 << 62

    async def read(self, offset: int, length: int) -> bytes:
        """See `UnixfsFile.read`, and `UnixfsFile.open`."""
        file = await self.opened()
        leaves = await file.leaves(offset, length)
        if self._local is not None and len(leaves) > 1 and all(codec_of(leaf.cid) == RAW for leaf in leaves):
            blocks = await self._local.local_many([leaf.cid for leaf in leaves])
            pieces = [cut(leaf, data, offset, length) for leaf, data in zip(leaves, blocks, strict=True) if data and len(data) == leaf.size]
            if len(pieces) == len(leaves):
                self._counters.fetched += sum(leaf.size for leaf in leaves)
                return b"".join(pieces)
        return await file.read(offset, length)

    def unverified(self, offset: int, length: int) -> list[bytes | memoryview] | None:
        """See `Blob.unverified`."""
        leaves = self._file.known_leaves(offset, length) if self._local is not None and self._file is not None else None
        if self._local is None or not leaves or any(codec_of(leaf.cid) != RAW or leaf.inline is not None for leaf in leaves):
            return None
        pieces = []
        for leaf, data in zip(leaves, self._local.unverified([leaf.cid for leaf in leaves]), strict=True):
            if data is None or len(data) != leaf.size:
                return None
            pieces.append(cut(leaf, data, offset, length))
        return pieces

    async def extent(self, offset: int, length: int) -> tuple[int, int]:
        """See `Blob.extent`; raises what `UnixfsFile.open` does."""
        leaves = await (await self.opened()).leaves(offset, length)
        return leaves[0].offset, leaves[-1].offset + leaves[-1].size

    def following(self, offset: int, length: int) -> tuple[int, int] | None:
        """See `Blob.following`: where small ranges are read one behind the other, twice as much each time, and one stretch ahead of the reader."""
        if self._local is None or length > AHEAD_FIRST:
            return None
        forward = self._last <= offset <= self._ahead_end + AHEAD_GAP
        self._last = offset
        if not forward:
            self._ahead_start = self._ahead_end = offset + length
            return None
        if offset < self._ahead_start:
            return None  # the reader is not where the stretch begins that was read ahead last
        before = self._ahead_end - self._ahead_start
        start = max(self._ahead_end, offset + length)
        self._ahead_start, self._ahead_end = start, start + min(max(2 * before, AHEAD_FIRST), AHEAD_MOST)
        return start, self._ahead_end - start

    async def local_extent(self, offset: int, length: int) -> tuple[int, int]:
        """See `Blob.local_extent`; raises what `UnixfsFile.open` does."""
        file = await self.opened()
        end = min(offset + length, file.size)
        if self._local is None or offset >= end:
            return offset, offset
        leaves = await file.leaves(offset, end - offset)
        count = await self._local.local_run([leaf.cid for leaf in leaves])
        return (leaves[0].offset, leaves[count - 1].offset + leaves[count - 1].size) if count else (offset, offset)

    async def opened(self) -> UnixfsFile:
        """The file; raises what `UnixfsFile.open` does."""
        if self._file is None:
            self._file = await UnixfsFile.open(self._get, self._cid)
        return self._file


@asynccontextmanager
async def open_source(spec: str, *, path: Path | None, peers: Sequence[str], timeout: float | None) -> AsyncIterator[LayerSource]:
    """Layers of the node that ``spec`` names (see `ipfs_store.nodes.open.open_node`)."""
    async with open_node(spec, path=path, peers=peers, timeout=timeout) as node:
        yield NodeSource(node)
