"""Layers out of an IPFS node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from ipfs_store.cids import Cid, parse_cid
from ipfs_store.dag.file import UnixfsFile
from ipfs_store.formats.layer import open_layer
from ipfs_store.nodes.interface import Node
from ipfs_store.nodes.open import open_node
from snapshotter.cache import RecentChunks
from snapshotter.dataplane.build import build_tree
from snapshotter.dataplane.layers import Counters, Opened
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

        async def get(wanted: Cid) -> bytes:
            data = self._blocks.get(wanted)
            if data is None:
                data = await self._node.get(wanted)
                counters.fetched += len(data)
                self._blocks.put(wanted, data)
            return data

        blob = await UnixfsFile.open(get, parse_cid(cid))
        layer = await open_layer(blob, toc_digest=toc_digest)
        tree = await trio.to_thread.run_sync(build_tree, layer.toc)
        return Opened(tree, blob, layer.decode)


@asynccontextmanager
async def open_source(spec: str, *, path: Path | None, peers: Sequence[str], timeout: float | None) -> AsyncIterator[LayerSource]:
    """Layers of the node that ``spec`` names (see `ipfs_store.nodes.open.open_node`)."""
    async with open_node(spec, path=path, peers=peers, timeout=timeout) as node:
        yield NodeSource(node)
