"""Every block below some roots: in order with its bytes, or just which there are and how long they are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence

import trio

from ipfs_store.cids import DAG_PB, RAW, Cid, codec_of
from ipfs_store.cids.cid import identity_block
from ipfs_store.dag import dagpb
from ipfs_store.dag.file import WANTS_IN_FLIGHT, GetBlock
from ipfs_store.dag.links import links_of
from ipfs_store.dag.unixfs import decode_file_node
from ipfs_store.errors import InvalidDag, InvalidInput, IpfsStoreError, NotFound, VerificationFailed

Visit = Callable[[Cid, bytes], Awaitable[None]]


async def walk(
    get: GetBlock, roots: Sequence[Cid], visit: Visit, *, skip: Collection[Cid] = (), leaves: bool = True,
    failed: Callable[[Cid, IpfsStoreError], None] | None = None,
) -> None:  # fmt: skip
    """Give ``visit`` each block that ``roots`` reach, depth first, each once, with up to 32 blocks asked for ahead of it.

    Blocks in ``skip`` are left out with all below them, and so is what a CID carries inside itself; raw blocks too where ``leaves`` is
    false. ``failed`` is told of blocks that nobody has or that are wrong, and the walk goes on without what is below them; otherwise the
    first of them ends it. Memory: 32 blocks, 100 bytes a CID.
    Raises what ``get`` and ``visit`` raise, InvalidDag for a block whose links cannot be seen.
    """

    def follow(link: Cid) -> bool:
        return link not in seen and (leaves or codec_of(link) != RAW) and identity_block(link) is None

    seen = set(skip)
    waiting = [root for root in reversed(roots) if follow(root)]
    flights: dict[Cid, _Flight] = {}
    failure: IpfsStoreError | None = None
    async with trio.open_nursery() as nursery:
        while waiting and failure is None:
            cid = waiting.pop()
            if cid in seen:
                continue
            seen.add(cid)
            for wanted in (cid, *waiting[: -WANTS_IN_FLIGHT - 1 : -1]):
                if wanted not in flights and (wanted == cid or (len(flights) < WANTS_IN_FLIGHT and wanted not in seen)):
                    flights[wanted] = _Flight()
                    nursery.start_soon(flights[wanted].fly, get, wanted)
            flight = flights.pop(cid)
            await flight.landed.wait()
            try:
                block = flight.result()
                await visit(cid, block)
                waiting += [link for link in reversed(links_of(cid, block)) if follow(link)]
            except (NotFound, VerificationFailed, InvalidInput) as error:
                if failed is None:
                    failure = error
                else:
                    failed(cid, error)
            except IpfsStoreError as error:
                failure = error  # raised outside of the nursery, which would wrap it in a group
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def reach(get: GetBlock, roots: Sequence[Cid], *, skip: Collection[Cid] = ()) -> dict[Cid, int | None]:
    """Each block that ``roots`` reach, and its bytes; leaves are not read: their lengths are what the block above them says.

    None is the length of a raw block that no UnixFS node describes (a small document that DAG-CBOR links, a root). Raises as ``walk`` does.
    """
    found: dict[Cid, int | None] = {cid: None for cid in roots if codec_of(cid) == RAW and cid not in skip}

    async def look(cid: Cid, block: bytes) -> None:
        found[cid] = len(block)
        sizes = _leaf_sizes(cid, block) if codec_of(cid) == DAG_PB else {}
        for link in links_of(cid, block):
            if codec_of(link) == RAW and found.get(link) is None and link not in skip and identity_block(link) is None:
                found[link] = sizes.get(link)

    await walk(get, roots, look, skip=skip, leaves=False)
    return found


class _Flight:
    """A block that was asked for."""

    def __init__(self) -> None:
        self.landed = trio.Event()
        self._block = b""
        self._failure: IpfsStoreError | None = None

    async def fly(self, get: GetBlock, cid: Cid) -> None:
        try:
            self._block = await get(cid)
        except IpfsStoreError as error:
            self._failure = error
        finally:
            self.landed.set()

    def result(self) -> bytes:
        if self._failure is not None:
            raise self._failure
        return self._block


def _leaf_sizes(cid: Cid, block: bytes) -> dict[Cid, int]:
    """The lengths of the raw blocks below a dag-pb node: of a file, what it says each contributes; else the links' own sizes."""
    try:
        return {child.cid: child.size for child in decode_file_node(cid, block).children}
    except InvalidDag:
        return {link.cid: link.size for link in dagpb.decode_node(block).links}
