"""A UnixFS file read by range, fetching no leaf that the range does not need."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from ipfs_store.cids import RAW, Cid, codec_of, format_cid
from ipfs_store.cids.cid import identity_block
from ipfs_store.dag.unixfs import FileNode, decode_file_node
from ipfs_store.errors import InvalidDag, IpfsStoreError

GetBlock = Callable[[Cid], Awaitable[bytes]]

# 32 wants in flight: over bitswap (12 to 41 ms a block) a link of 200 Mbit/s is full at 4, one of 1 Gbit/s at about 24.
WANTS_IN_FLIGHT = 32
# 174 links a level: 4 levels reach 900 million leaves; trickle DAGs are a little deeper.
_MAX_DEPTH = 32
# Interior nodes kept in memory: 174 of about 8 KiB cover 30,000 leaves, some 4 GB.
_KEPT_NODES = 256


@dataclass(frozen=True, slots=True)
class Leaf:
    """A block that holds bytes of the file."""

    cid: Cid
    offset: int
    """Where in the file."""
    size: int
    inline: bytes | None = None
    """The bytes, where an interior block held them itself."""


class UnixfsFile:
    """A file by its CID (a ``formats.RangeReader``)."""

    def __init__(self, get: GetBlock, cid: Cid, root: FileNode) -> None:
        self.cid = cid
        self._get = get
        self._root = root
        self._nodes: OrderedDict[Cid, FileNode] = OrderedDict()
        self._wants = trio.CapacityLimiter(WANTS_IN_FLIGHT)

    @classmethod
    async def open(cls, get: GetBlock, cid: Cid) -> UnixfsFile:
        """Fetch the file's first block; raises what ``get`` raises, and InvalidDag where it is no file."""
        return cls(get, cid, decode_file_node(cid, await _fetch(get, cid)))

    @property
    def size(self) -> int:
        """Bytes of the file, as its root says; each leaf that is read is held to it."""
        return self._root.size

    async def leaves(self, offset: int, length: int) -> list[Leaf]:
        """The leaves that overlap the range, in order; fetches interior blocks only."""
        found: list[Leaf] = []
        await self._collect(self.cid, self._root, 0, offset, offset + length, found, 0)
        return found

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``; ValueError outside of the file, InvalidDag where leaves lie about sizes."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{length} bytes at {offset} are outside of the {self.size} bytes of {format_cid(self.cid)}")
        parts = await self.leaves(offset, length)
        pieces: list[bytes] = [b""] * len(parts)

        failed: list[IpfsStoreError] = []

        async def fetch(number: int, leaf: Leaf, scope: trio.CancelScope) -> None:
            try:
                async with self._wants:
                    pieces[number] = cut(leaf, await self._leaf(leaf), offset, length)
            except IpfsStoreError as error:
                # The first error is the reader's answer; a group of the errors of all leaves would say no more.
                failed.append(error)
                scope.cancel()

        async with trio.open_nursery() as nursery:
            for number, leaf in enumerate(parts):
                nursery.start_soon(fetch, number, leaf, nursery.cancel_scope)
        if failed:
            raise failed[0]
        return b"".join(pieces) if len(pieces) != 1 else pieces[0]

    async def _leaf(self, leaf: Leaf) -> bytes:
        if leaf.inline is not None:
            return leaf.inline
        if leaf.cid == self.cid:
            return self._root.data
        data = decode_file_node(leaf.cid, await _fetch(self._get, leaf.cid)).data
        if len(data) != leaf.size:
            raise InvalidDag(f"leaf {format_cid(leaf.cid)} has {len(data)} bytes where its parent says {leaf.size}")
        return data

    async def _collect(self, cid: Cid, node: FileNode, at: int, start: int, end: int, found: list[Leaf], depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise InvalidDag(f"{format_cid(self.cid)} is nested deeper than {_MAX_DEPTH} blocks")
        if node.data and at < end and at + len(node.data) > start:
            found.append(Leaf(cid, at, len(node.data), node.data))
        at += len(node.data)
        for child in node.children:
            if at >= end:
                break
            if at + child.size > start and child.size:
                if codec_of(child.cid) == RAW:
                    found.append(Leaf(child.cid, at, child.size))
                else:
                    below = await self._interior(child.cid)
                    if below.size != child.size:
                        raise InvalidDag(f"block {format_cid(child.cid)} has {below.size} bytes where its parent says {child.size}")
                    await self._collect(child.cid, below, at, start, end, found, depth + 1)
            at += child.size

    async def _interior(self, cid: Cid) -> FileNode:
        node = self._nodes.get(cid)
        if node is None:
            node = decode_file_node(cid, await _fetch(self._get, cid))
            if not node.children:
                return node  # a leaf in dag-pb: read once, not worth keeping
            self._nodes[cid] = node
            if len(self._nodes) > _KEPT_NODES:
                self._nodes.popitem(last=False)
        else:
            self._nodes.move_to_end(cid)
        return node


def cut(leaf: Leaf, data: bytes, offset: int, length: int) -> bytes:
    """What of ``leaf`` lies inside of the range."""
    start, end = max(offset - leaf.offset, 0), min(offset + length - leaf.offset, leaf.size)
    return data if start == 0 and end == leaf.size else data[start:end]


async def _fetch(get: GetBlock, cid: Cid) -> bytes:
    inside = identity_block(cid)
    return await get(cid) if inside is None else inside
