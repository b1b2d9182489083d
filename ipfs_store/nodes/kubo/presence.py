"""Which blocks Kubo has already: asked one by one for a few, read in a listing of the repository as far as that is cheaper."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack

import trio

from ipfs_store.cids import Cid, cid_of_name, format_cid
from ipfs_store.errors import IpfsStoreError
from ipfs_store.nodes.connection import Exchange
from ipfs_store.nodes.kubo.rpc import Rpc, RpcError

# One `block/stat` costs Kubo 0.26 ms of a processor, which is what storing a block of 60 KB costs; a block of `refs/local` costs it 0.02 ms. So a
# listing is read as far as asking would have cost the same: whatever the size of the repository, at most twice of what was needed is spent.
_LINES_FOR_ONE = 13
_ASK_SINGLY = 16
_ASK_AT_ONCE = 8
_LISTING_LIMIT = 500_000  # blocks of the repository, 100 bytes of our memory each
# Lines are {"Ref":"bafk...","Err":""}; a JSON parser takes ten times as long.
_REFERENCE = re.compile(rb'^\{"Ref":"([^"]+)"', re.MULTILINE)


class Presence:
    """Answers for one push. A listing is taken once: what others add meanwhile is sent once more, which does no harm."""

    def __init__(self, rpc: Rpc) -> None:
        """Nothing is asked yet."""
        self._rpc = rpc
        self._asked = 0
        self._open = AsyncExitStack()
        self._listing: _Listing | None = None
        self._listed: set[bytes] = set()

    async def of(self, cids: Sequence[Cid]) -> set[Cid]:
        """Those of ``cids`` that the repository holds; raises NodeUnavailable."""
        self._asked += len(cids)
        if self._asked > _ASK_SINGLY:
            if self._listing is None:
                self._listing = await _Listing.open(self._rpc, self._open)
            while not self._listing.ended and len(self._listed) < min(self._asked * _LINES_FOR_ONE, _LISTING_LIMIT):
                self._listed.update(multihash(cid) for cid in await self._listing.more())
        present = {cid for cid in cids if multihash(cid) in self._listed}
        if self._listing is None or not self._listing.ended:
            present |= await self._ask([cid for cid in cids if cid not in present])
        return present

    async def aclose(self) -> None:
        """Read no further."""
        await self._open.aclose()

    async def _ask(self, cids: Sequence[Cid]) -> set[Cid]:
        present: set[Cid] = set()
        failures: list[IpfsStoreError] = []
        limiter = trio.CapacityLimiter(_ASK_AT_ONCE)

        async def ask(cid: Cid) -> None:
            async with limiter:
                try:
                    if await is_local(self._rpc, cid):
                        present.add(cid)
                except IpfsStoreError as error:
                    failures.append(error)
                    nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for cid in cids:
                nursery.start_soon(ask, cid)
        if failures:
            raise failures[0]
        return present


class _Listing:
    """`refs/local`, piece by piece: every block as a raw one, for Kubo keeps them by multihash."""

    def __init__(self, rpc: Rpc, answer: Exchange) -> None:
        self._rpc = rpc
        self._answer = answer
        self._rest = b""
        self.ended = False

    @classmethod
    async def open(cls, rpc: Rpc, stack: AsyncExitStack) -> _Listing:
        """Closed with ``stack``; raises NodeUnavailable."""
        return cls(rpc, await stack.enter_async_context(rpc.stream("refs/local")))

    async def more(self) -> list[Cid]:
        with self._rpc.faults():
            piece = await self._rpc.piece(self._answer)
        self.ended = not piece
        lines, _, self._rest = (self._rest + piece).rpartition(b"\n")
        return [cid_of_name(name.decode()) for name in _REFERENCE.findall(lines)]


async def is_local(rpc: Rpc, cid: Cid) -> bool:
    """Whether the repository holds the block; raises NodeUnavailable."""
    try:
        await rpc.call("block/stat", [("arg", format_cid(cid)), ("offline", "true")])
    except RpcError as error:
        if is_missing(error):
            return False
        raise
    return True


async def local_blocks(rpc: Rpc) -> AsyncGenerator[Cid, None]:
    """Every block of the repository, as a raw one; raises NodeUnavailable."""
    async with AsyncExitStack() as stack:
        listing = await _Listing.open(rpc, stack)
        while not listing.ended:
            for cid in await listing.more():
                yield cid


def is_missing(error: RpcError) -> bool:
    """Whether Kubo said that it does not have a block."""
    return "not found" in error.message or "could not find" in error.message


def multihash(cid: Cid) -> bytes:
    """What is behind version and codec: all that Kubo keeps of a CID."""
    at = 1
    while cid[at] & 0x80:
        at += 1
    return cid[at + 1 :]
