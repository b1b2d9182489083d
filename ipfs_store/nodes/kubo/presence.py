"""Which blocks Kubo has already: asked one by one for a few, from one listing of the repository for many."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import trio

from ipfs_store.cids import Cid, format_cid
from ipfs_store.errors import IpfsStoreError
from ipfs_store.nodes.blockstore import cid_of_name
from ipfs_store.nodes.kubo.rpc import Rpc, RpcError

# One `block/stat` costs 1 ms with httpx, one line of `refs/local` 14 µs (2,000 blocks in 28 ms): a listing pays as soon as the
# repository holds less than 70 times what is asked. Up to 64 blocks are not worth one.
_ASK_SINGLY = 64
# A listing of 1 million blocks takes 14 s and 100 MB here; beyond that it is given up and blocks are asked for one by one.
_LISTING_LIMIT = 1_000_000
_ASK_AT_ONCE = 8


class Presence:
    """Answers for one push. A listing is taken once: what others add meanwhile is sent once more, which does no harm."""

    def __init__(self, rpc: Rpc) -> None:
        """Nothing is asked yet."""
        self._rpc = rpc
        self._asked = 0
        self._listing: set[bytes] | None = None
        self._too_long = False

    async def of(self, cids: Sequence[Cid]) -> set[Cid]:
        """Those of ``cids`` that the repository holds; raises NodeUnavailable."""
        self._asked += len(cids)
        if self._asked > _ASK_SINGLY and self._listing is None and not self._too_long:
            self._listing = await self._list()
        if self._listing is not None:
            return {cid for cid in cids if multihash(cid) in self._listing}
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

    async def _list(self) -> set[bytes] | None:
        found: set[bytes] = set()
        async for cid in local_blocks(self._rpc):
            found.add(multihash(cid))
            if len(found) > _LISTING_LIMIT:
                self._too_long = True
                return None
        return found


async def is_local(rpc: Rpc, cid: Cid) -> bool:
    """Whether the repository holds the block; raises NodeUnavailable."""
    try:
        await rpc.call("block/stat", [("arg", format_cid(cid)), ("offline", "true")])
    except RpcError as error:
        if is_missing(error):
            return False
        raise
    return True


async def is_pinned(rpc: Rpc, root: Cid) -> bool:
    """Whether ``root`` is pinned with all below it; raises NodeUnavailable."""
    try:
        await rpc.call("pin/ls", [("arg", format_cid(root)), ("type", "recursive"), ("quiet", "true")])
    except RpcError as error:
        if "not pinned" in error.message:
            return False
        raise
    return True


async def local_blocks(rpc: Rpc) -> AsyncGenerator[Cid, None]:
    """Every block of the repository. Kubo keeps them by multihash and calls them all raw; raises NodeUnavailable."""
    async with rpc.stream("refs/local") as response:
        rest = b""
        async for piece in response.aiter_bytes():
            # Lines are {"Ref":"bafk...","Err":""}, cut by hand: a JSON parser per line takes three times as long.
            lines = (rest + piece).split(b"\n")
            rest = lines.pop()
            for line in lines:
                reference = line.split(b'"', 4)[3] if line.startswith(b'{"Ref":"') else b""
                if reference:
                    yield cid_of_name(reference.decode())


def is_missing(error: RpcError) -> bool:
    """Whether Kubo said that it does not have a block."""
    return "not found" in error.message or "could not find" in error.message


def multihash(cid: Cid) -> bytes:
    """What is behind version and codec."""
    at = 1
    while cid[at] & 0x80:
        at += 1
    return cid[at + 1 :]
