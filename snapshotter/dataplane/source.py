"""Layers out of an IPFS node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from ipfs_store.cids import Cid, parse_cid
from ipfs_store.dag.file import GetBlock, UnixfsFile
from ipfs_store.formats.footer import TocLocation
from ipfs_store.formats.layer import load_toc, open_layer
from ipfs_store.nodes.interface import Node
from ipfs_store.nodes.open import open_node
from snapshotter.cache import RecentChunks
from snapshotter.dataplane.build import build_tree
from snapshotter.dataplane.layers import Blob, Counters, Opened
from snapshotter.dataplane.server import LayerSource

# A leaf of 128 KiB to 1 MiB holds the streams of some dozens of small files, which are read one soon after the other: without these, the
# leaf would be read and hashed again for each (measured on a Debian image: 24 times its bytes). Kept by all layers together.
RECENT_BLOCK_BYTES = 16 << 20


class NodeSource:
    """Opens layers by the CID of their UnixFS file."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._blocks = RecentChunks(RECENT_BLOCK_BYTES)

    async def open(self, cid: str, toc_digest: str, counters: Counters) -> Opened:
        """See `server.LayerSource`; raises InvalidCid, InvalidDag, BlockNotFound, NodeUnavailable, NotSeekable, InvalidLayer, TocMismatch."""
        get = self._getter(counters)
        blob = await UnixfsFile.open(get, parse_cid(cid))
        layer = await open_layer(blob, toc_digest=toc_digest)
        tree = await trio.to_thread.run_sync(build_tree, layer.toc)
        return Opened(tree, LaterFile(get, blob.cid, blob), layer.decode)

    async def load_toc(self, cid: str, toc_digest: str, counters: Counters) -> tuple[TocLocation, bytes]:
        """See `server.LayerSource`; raises what `open` does."""
        return await load_toc(await UnixfsFile.open(self._getter(counters), parse_cid(cid)), toc_digest=toc_digest)

    def blob(self, cid: str, counters: Counters) -> Blob:
        """See `server.LayerSource`; raises InvalidCid."""
        return LaterFile(self._getter(counters), parse_cid(cid))

    def _getter(self, counters: Counters) -> GetBlock:
        async def get(wanted: Cid) -> bytes:
            data = self._blocks.get(wanted)
            if data is None:
                data = await self._node.get(wanted)
                counters.fetched += len(data)
                self._blocks.put(wanted, data)
            return data

        return get


class LaterFile:
    """A UnixFS file that is opened when it is read for the first time: a layer whose metadata are kept is mounted without any network."""

    def __init__(self, get: GetBlock, cid: Cid, file: UnixfsFile | None = None) -> None:
        self._get = get
        self._cid = cid
        self._file = file

    async def read(self, offset: int, length: int) -> bytes:
        """See `UnixfsFile.read`, and `UnixfsFile.open`."""
        return await (await self._opened()).read(offset, length)

    async def extent(self, offset: int, length: int) -> tuple[int, int]:
        """See `Blob.extent`; raises what `UnixfsFile.open` does."""
        leaves = await (await self._opened()).leaves(offset, length)
        return leaves[0].offset, leaves[-1].offset + leaves[-1].size

    async def _opened(self) -> UnixfsFile:
        if self._file is None:
            self._file = await UnixfsFile.open(self._get, self._cid)
        return self._file


@asynccontextmanager
async def open_source(spec: str, *, path: Path | None, peers: Sequence[str], timeout: float | None) -> AsyncIterator[LayerSource]:
    """Layers of the node that ``spec`` names (see `ipfs_store.nodes.open.open_node`)."""
    async with open_node(spec, path=path, peers=peers, timeout=timeout) as node:
        yield NodeSource(node)
