"""A UnixFS file read by range, fetching no leaf that the range does not need."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import TypeVar, cast

import trio

from ipfs_store.cids import RAW, Cid, codec_of, format_cid
from ipfs_store.cids.cid import identity_block
from ipfs_store.dag.unixfs import FileNode, decode_file_node
from ipfs_store.errors import InvalidDag, IpfsStoreError

B = TypeVar("B", bound=bytes | memoryview)
GetBlock = Callable[[Cid], Awaitable[bytes]]

# 32 wants in flight: over bitswap (12 to 41 ms a block) a link of 200 Mbit/s is full at 4, one of 1 Gbit/s at about 24.
WANTS_IN_FLIGHT = 32
# A reader asks for more at once, since leaves are small (32 KiB on average) and a node may ask for neighbours together; it holds what it reads anyway.
_LEAVES_IN_FLIGHT = 128
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
        self._nodes: dict[Cid, FileNode] = {}
        """The interior blocks that were fetched last."""
        self._wants = trio.Semaphore(_LEAVES_IN_FLIGHT)

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
        walk = self._walk(self.cid, self._root, 0, offset, offset + length, found, 0)
        missing = next(walk, None)
        try:
            while missing is not None:
                missing = walk.send(await self._interior(missing))
        except StopIteration:
            pass
        return found

    def known_leaves(self, offset: int, length: int) -> list[Leaf] | None:
        """The same where every interior block is in memory, else None. For any thread."""
        found: list[Leaf] = []
        missing = next(self._walk(self.cid, self._root, 0, offset, offset + length, found, 0), None)
        return found if missing is None else None

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``; ValueError outside of the file, InvalidDag where leaves lie about sizes."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{length} bytes at {offset} are outside of the {self.size} bytes of {format_cid(self.cid)}")
        parts = await self.leaves(offset, length)
        pieces: list[bytes] = [b""] * len(parts)

        failed: list[IpfsStoreError] = []

        async def fetch(number: int, leaf: Leaf, scope: trio.CancelScope) -> None:
            try:
                pieces[number] = cut(leaf, await self._leaf(leaf), offset, length)
            except IpfsStoreError as error:
                # The first error is the reader's answer; a group of the errors of all leaves would say no more.
                failed.append(error)
                scope.cancel()
            finally:
                self._wants.release()

        async with trio.open_nursery() as nursery:
            for number, leaf in enumerate(parts):
                # Here, in order, for the tasks start in none; and those for whom there is room in one moment: a node asks for neighbours together.
                try:
                    self._wants.acquire_nowait()
                except trio.WouldBlock:
                    await self._wants.acquire()
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

    def _walk(self, cid: Cid, node: FileNode, at: int, start: int, end: int, found: list[Leaf], depth: int) -> Generator[Cid, FileNode]:
        """Add the leaves of the range to ``found``; asks for interior blocks that are not in memory."""
        if depth > _MAX_DEPTH:
            raise InvalidDag(f"{format_cid(self.cid)} is nested deeper than {_MAX_DEPTH} blocks")
        if node.data and at < end and at + len(node.data) > start:
            found.append(Leaf(cid, at, len(node.data), node.data))
        first = bisect_right(node.ends, start - at)
        for number in range(first, len(node.children)):
            child = node.children[number]
            begin = at + node.ends[number] - child.size
            if begin >= end:
                break
            if not child.size:
                continue
            if codec_of(child.cid) == RAW:
                found.append(Leaf(child.cid, begin, child.size))
                continue
            below = self._nodes.get(child.cid)
            if below is None:
                below = yield child.cid
            if below.size != child.size:
                raise InvalidDag(f"block {format_cid(child.cid)} has {below.size} bytes where its parent says {child.size}")
            yield from self._walk(child.cid, below, begin, start, end, found, depth + 1)

    async def _interior(self, cid: Cid) -> FileNode:
        node = decode_file_node(cid, await _fetch(self._get, cid))
        if node.children:  # else it is a leaf in dag-pb: read once, not worth keeping
            if len(self._nodes) >= _KEPT_NODES:
                del self._nodes[next(iter(self._nodes))]
            self._nodes[cid] = node
        return node


def cut(leaf: Leaf, data: B, offset: int, length: int) -> B:
    """What of ``leaf`` lies inside of the range."""
    start, end = max(offset - leaf.offset, 0), min(offset + length - leaf.offset, leaf.size)
    return data if start == 0 and end == leaf.size else cast("B", data[start:end])


async def _fetch(get: GetBlock, cid: Cid) -> bytes:
    inside = identity_block(cid)
    return await get(cid) if inside is None else inside
