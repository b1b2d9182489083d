"""Images as files, for machines that no network reaches: written as CARv1, read back, complete or not kept at all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

import trio

from ipfs_store.cids import RAW, Cid, codec_of, format_cid
from ipfs_store.cids.cid import identity_block
from ipfs_store.dag.car import CarReader, car_frame, car_header
from ipfs_store.dag.links import links_of
from ipfs_store.dag.walk import reach, walk
from ipfs_store.errors import BlockNotFound, InvalidDag, IpfsStoreError
from ipfs_store.images.catalog import keep
from ipfs_store.images.identity import Identity, identify
from ipfs_store.images.local import LocalBlocks, missing
from ipfs_store.images.model import NoProgress, Progress
from ipfs_store.images.pull import resolve
from ipfs_store.nodes.interface import Block, Node, Push, WholeDags

# What is handed to a file or pipe at a time: calls in pieces of a block (128 KiB) cost a thread switch each.
_PIECE = 1 << 20
# After so many new bytes an import waits for the disk: what a killed one loses. A wait costs some 20 ms, as reading 10 MB does.
_FLUSH = 64 << 20
_HINT = "if it was exported with --have, import the image that was named there first"


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

    blocks: int
    bytes: int
    """Of the CAR."""
    left_out: int
    """Blocks that the other side has."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import brought."""

    images: tuple[Identity, ...]
    """The images, or other DAGs, that are kept now."""
    blocks: int
    bytes: int
    """Of all blocks of the CAR."""
    new_blocks: int
    new_bytes: int


async def export_car(
    node: Node, roots: Sequence[Cid], write: Callable[[bytes], Awaitable[None]], *, have: Collection[Cid] = (),
    progress: Progress | None = None, timeout: float | None = None,
) -> Exported:  # fmt: skip
    """Give ``write`` a CAR of all that ``roots`` reach, depth first, each block once, but for what ``have`` reaches.

    What the node lacks is fetched, ``timeout`` seconds a block. Memory: 33 blocks, 100 bytes for each CID. Raises BlockNotFound,
    NodeUnavailable, InvalidDag (a block of a codec whose links cannot be seen), and what ``write`` raises.
    """
    told = progress or NoProgress()

    async def get(cid: Cid) -> bytes:
        return await node.get(cid, timeout=timeout)

    skip = await reach(get, list(have))
    wanted = await reach(get, roots)
    fresh = {cid: size for cid, size in wanted.items() if cid not in skip}
    item = format_cid(roots[0])
    told.begin(item, "export", sum(size or 0 for size in fresh.values()))
    pieces = [car_header(roots)]
    held, blocks, size = len(pieces[0]), 0, 0

    async def flush() -> None:
        nonlocal held, size
        await write(b"".join(pieces))
        size += held
        held = 0
        pieces.clear()

    async def visit(cid: Cid, block: bytes) -> None:
        nonlocal held, blocks
        if fresh.pop(cid, -1) == -1:
            return  # below another root already
        pieces.append(car_frame(cid, block))
        held += len(pieces[-1])
        blocks += 1
        if held >= _PIECE:
            await flush()
        told.advance(item, len(block))

    left_out = len(wanted) - len(fresh)
    if isinstance(node, WholeDags) and not have:
        for root in roots:
            await node.stream_dag(root, visit, timeout=timeout)
        for cid in list(fresh):  # what did not come is asked for by itself, and whoever cannot be had is named
            await visit(cid, await get(cid))
    else:
        await walk(get, roots, visit, skip=skip)
    await flush()
    told.done(item)
    return Exported(blocks, size, left_out)


async def import_car(
    node: Node, read: Callable[[], Awaitable[bytes]], *, name: str = "", size: int = 0, progress: Progress | None = None
) -> Imported:
    """Store the CAR that ``read`` gives piece by piece (empty at its end), and pin its roots when all that belongs to them is there.

    Every block is checked against its CID before it is stored. An import that is broken off, or whose CAR is cut short, pins nothing;
    what it stored is there for a repetition, until the next garbage collection. ``name`` is for the pins, instead of the image's own;
    ``size``: bytes of the CAR, for ``progress``. Memory: one block and the node's queue, 200 bytes for each block of the CAR.

    Raises InvalidDag (no CAR, cut short, no roots), BlockMismatch, BlockNotFound (neither CAR nor node have all of a root),
    InvalidDescriptor and BlobMismatch (documents of an image that contradict each other), StorageFailed, NodeUnavailable.
    """
    told = progress or NoProgress()
    told.begin("CAR", "import", size)
    async with node.push() as push:
        arrived = _Arrived(push)
        try:
            while piece := await read():
                await arrived.take(piece)
                told.advance("CAR", len(piece))
            roots = arrived.end()
        except IpfsStoreError:
            await push.flush()  # what came before is right, and need not come again
            raise
        await push.flush()
        local = LocalBlocks(node, arrived.links)
        await _check_complete(local, roots)
        images = _outermost([await identify(local, root) for root in roots])
        await _check_complete(local, [cid for image in images for cid in image.roots])
        for image in images:
            if image.is_image:
                await resolve(local, image.cid, platforms=None)  # its documents agree with each other
        for image in images:
            await keep(node, image, name=name)
    told.done("CAR")
    return Imported(images, len(arrived.links), arrived.bytes, push.new_blocks, push.new_bytes)


def _outermost(images: Sequence[Identity]) -> tuple[Identity, ...]:
    """Without those that are part of another: a CAR names an image's descriptor and its root."""
    return tuple(image for image in images if not any(image.cid in other.roots for other in images if other is not image))


class _Arrived:
    """Blocks on their way from a CAR into a push."""

    def __init__(self, push: Push) -> None:
        self.links: dict[Cid, tuple[Cid, ...]] = {}
        """Of each block that came."""
        self.bytes = 0
        self._push = push
        self._reader = CarReader()
        self._unflushed = 0

    async def take(self, piece: bytes) -> None:
        blocks: list[Block] = []
        try:
            await trio.to_thread.run_sync(self._read, piece, blocks)
        finally:
            size = sum(len(block.data) for block in blocks)
            self.bytes += size
            self._unflushed += size
            await self._push.put_all(blocks)
        if self._unflushed >= _FLUSH:
            await self._push.flush()
            self._unflushed = 0

    def end(self) -> list[Cid]:
        """The roots, each once; raises InvalidDag where the CAR is not whole."""
        self._reader.close()
        return list(dict.fromkeys(self._reader.roots or []))

    def _read(self, piece: bytes, blocks: list[Block]) -> None:
        for cid, data in self._reader.feed(piece):
            # Links are what completeness is checked by in the end; a block with others than its codec allows is refused here.
            self.links[cid] = tuple(links_of(cid, data))
            blocks.append(Block(cid, data))
        if self._reader.roots == []:
            raise InvalidDag("the CAR names no roots: there is nothing to keep of it")


async def _check_complete(local: LocalBlocks, roots: Sequence[Cid]) -> None:
    """Raises BlockNotFound, naming some of the blocks that are missing."""
    seen: set[Cid] = set()
    waiting = list(roots)
    lost: list[Cid] = []
    while waiting:
        cid = waiting.pop()
        if cid in seen or identity_block(cid) is not None:
            continue
        seen.add(cid)
        if codec_of(cid) != RAW:
            if await local.has(cid):
                waiting += await local.links(cid)
            else:
                lost.append(cid)
    leaves = {cid for cid in seen if codec_of(cid) == RAW}
    lost += leaves - await local.present(leaves)
    if lost:
        raise BlockNotFound(f"the CAR is not complete, and nothing of it is pinned: {missing(lost).message}", hint=_HINT)
