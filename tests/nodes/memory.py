"""A node that is a dictionary."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from ipfs_store.cids import Cid, format_cid
from ipfs_store.cids.cid import identity_block
from ipfs_store.dag.links import links_of
from ipfs_store.errors import BlockNotFound, NotFound
from ipfs_store.nodes.interface import Block, GcResult


class MemoryPush:
    """Puts straight into the dictionary."""

    def __init__(self, node: MemoryNode) -> None:
        self._node = node
        self._store = node.store
        self.new_blocks = 0
        self.new_bytes = 0

    async def put(self, block: Block) -> None:
        if block.cid not in self._store:
            self._store[block.cid] = block.data
            self.new_blocks += 1
            self.new_bytes += len(block.data)

    async def put_all(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            await self.put(block)

    async def holds(self, root: Cid) -> bool:
        return self._node.holds(root)

    async def flush(self) -> None:
        pass


class MemoryNode:
    """Counts what is asked of it in ``asked``."""

    name = "memory"

    def __init__(self) -> None:
        self.store: dict[Cid, bytes] = {}
        self.asked: Counter[Cid] = Counter()
        self._pins: dict[Cid, str] = {}

    async def get(self, cid: Cid, *, timeout: float | None = None) -> bytes:
        if (inside := identity_block(cid)) is not None:
            return inside
        self.asked[cid] += 1
        if cid not in self.store:
            raise BlockNotFound(f"nobody has {format_cid(cid)}")
        return self.store[cid]

    async def has(self, cid: Cid) -> bool:
        return cid in self.store or identity_block(cid) is not None

    async def delete(self, cid: Cid) -> None:
        self.store.pop(cid, None)

    async def blocks(self) -> AsyncIterator[Cid]:
        for cid in list(self.store):
            yield cid

    @asynccontextmanager
    async def push(self) -> AsyncIterator[MemoryPush]:
        yield MemoryPush(self)

    async def pin(self, root: Cid, *, name: str = "") -> None:
        self.reach(root)
        self._pins[root] = name

    async def unpin(self, root: Cid) -> None:
        if self._pins.pop(root, None) is None:
            raise NotFound(f"{format_cid(root)} is not pinned")

    async def pins(self) -> dict[Cid, str]:
        return dict(self._pins)

    async def gc(self) -> GcResult:
        kept = set[Cid]().union(*(self.reach(root) for root in self._pins))
        gone = [cid for cid in self.store if cid not in kept]
        return GcResult(len(gone), sum(len(self.store.pop(cid)) for cid in gone))

    def holds(self, root: Cid) -> bool:
        try:
            self.reach(root)
        except BlockNotFound:
            return False
        return True

    def reach(self, root: Cid) -> set[Cid]:
        """Everything that ``root`` links to."""
        seen: set[Cid] = set()
        queue = [root]
        while queue:
            cid = queue.pop()
            if cid not in seen and identity_block(cid) is None:
                seen.add(cid)
                if cid not in self.store:
                    raise BlockNotFound(f"nobody has {format_cid(cid)}")
                queue += links_of(cid, self.store[cid])
        return seen

    async def aclose(self) -> None:
        pass
