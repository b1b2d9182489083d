"""A push into Kubo: what it lacks, as one streamed CAR, with its garbage collector kept out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from ipfs_store.cids import DAG_CBOR, RAW, Cid, cid_of, codec_of, format_cid, verify_block
from ipfs_store.cids.cid import identity_block
from ipfs_store.dag import dagcbor
from ipfs_store.dag.links import links_of
from ipfs_store.errors import IpfsStoreError
from ipfs_store.nodes.interface import Block
from ipfs_store.nodes.kubo.imports import Import
from ipfs_store.nodes.kubo.presence import Presence, is_missing, is_pinned
from ipfs_store.nodes.kubo.rpc import Rpc, RpcError

T = TypeVar("T")

# Blocks looked up and sent together; as many wait. 0.5 MiB at 32 KiB a block, 16 MiB at most.
_TOGETHER = 16
_LINKS = 8000  # of one keeper block: 41 bytes each, so it stays under 1 MiB, which every IPFS node takes


class KuboPush:
    """See ``Push``. ``run`` has to run in ``nursery``.

    What guards it: an import without blocks that stays open as long as the push, and for which Kubo holds its pin lock, as for
    every import that may pin. ``repo gc`` waits for that lock. It would also make a pin wait behind a collector that waits for
    us, hence ``pin``, which has the open import do it.
    """

    def __init__(self, rpc: Rpc, nursery: trio.Nursery) -> None:
        """``nursery`` is for the requests; it belongs to the push."""
        self._rpc = rpc
        self._nursery = nursery
        self._presence = Presence(rpc)
        self._queue, self._waiting = trio.open_memory_channel[list[Block]](1)
        self._open = 0  # blocks put and not yet handed to Kubo or found there
        self._idle = trio.Event()
        self._failure: IpfsStoreError | None = None
        self._requests = trio.Lock()  # held by whoever feeds or ends one of the two requests below
        self._import: Import | None = None
        self._guard: Import | None = None
        self._seen: set[Cid] = set()
        self._kept: list[Cid] = []  # known to be in Kubo
        self._sending: dict[Cid, int] = {}
        self._new_blocks = 0
        self._new_bytes = 0

    @property
    def new_blocks(self) -> int:
        """Blocks stored that were not there before (known after flush)."""
        return self._new_blocks

    @property
    def new_bytes(self) -> int:
        """Their bytes."""
        return self._new_bytes

    async def open(self) -> None:
        """Take the guard; raises NodeUnavailable."""
        self._resume()
        # Over once no collector runs: what is found to be there from now on stays there.
        check = Import(self._rpc, pin_roots=True)
        self._nursery.start_soon(check.run)
        await check.finish()

    async def put(self, block: Block) -> None:
        """Queue a block; raises the failure of an earlier one."""
        await self.put_all([block])

    async def put_all(self, blocks: Sequence[Block]) -> None:
        """Queue several; raises as ``put`` does."""
        for some in _batched(blocks, _TOGETHER):
            await self._put(some)

    async def _put(self, blocks: Sequence[Block]) -> None:
        self._check()
        fresh = {
            block.cid: block
            for block in blocks
            if block.cid not in self._seen and (block.cid[2:4] == b"\x12\x20" or identity_block(block.cid) is None)
        }
        if not fresh:
            return
        self._seen.update(fresh)
        self._open += len(fresh)
        try:
            await self._queue.send(list(fresh.values()))
        except BaseException:
            self._seen.difference_update(fresh)
            self._settle(len(fresh))
            self._check()
            raise

    async def holds(self, root: Cid) -> bool:
        """See ``Push.holds``: what is pinned is taken to be there, for Kubo deletes nothing of it; else the DAG is walked."""
        if await is_pinned(self._rpc, root) or await self._walk(root):
            self._kept.append(root)
            return True
        return False

    async def flush(self) -> None:
        """Return when Kubo has stored everything put so far."""
        while self._open and self._failure is None:
            self._idle = trio.Event()
            await self._idle.wait()
        self._check()
        async with self._requests:
            await self._finish_import()

    async def run(self) -> None:
        """Hand what is queued to Kubo, until cancelled."""
        async for blocks in self._waiting:
            try:
                await self._hand_over(blocks)
            except IpfsStoreError as error:
                self._failure = error
                self._waiting.close()
                self._open = 0
                self._idle.set()
                return
            self._settle(len(blocks))

    async def pin(self, root: Cid) -> None:
        """Pin what was pushed, with no moment between guard and pin; raises RpcError where Kubo lacks a block of it."""
        await self.flush()
        async with self._requests:
            assert self._guard is not None  # open until close
            guard, self._guard = self._guard, None
            try:
                await guard.finish([root])
            finally:
                self._resume()

    @asynccontextmanager
    async def suspended(self) -> AsyncIterator[None]:
        """Let the collector run: instead of the lock, a pinned block that links to all that was brought keeps it."""
        await self.flush()
        async with self._requests:
            keepers = [_keeper(cids) for cids in _batched(self._kept, _LINKS)]
            roots = [keeper.cid for keeper in keepers]
            assert self._guard is not None  # open until close
            guard, self._guard = self._guard, None
            try:
                await guard.finish(roots, keepers)
                yield
            finally:
                self._resume()
                for root in roots:
                    # Unpinned only, for the next collection to take: `block/rm` wants the collector's lock, which our own guard keeps from it.
                    await self._rpc.call("pin/rm", [("arg", format_cid(root))])

    async def close(self) -> None:
        """Let go of the guard."""
        async with self._requests:
            if self._guard is not None:
                await self._guard.finish()

    async def _walk(self, root: Cid) -> bool:
        waiting, seen = [root], {root}
        while waiting:
            if len(await self._presence.of(waiting)) < len(waiting):
                return False
            links: list[Cid] = []
            for cid in waiting:
                if codec_of(cid) != RAW:
                    try:
                        block = await self._rpc.call("block/get", [("arg", format_cid(cid)), ("offline", "true")])
                    except RpcError as error:
                        if is_missing(error):
                            return False
                        raise
                    verify_block(cid, block)
                    links += links_of(cid, block)
            waiting = [link for link in dict.fromkeys(links) if link not in seen]
            seen.update(waiting)
        return True

    async def _hand_over(self, blocks: list[Block]) -> None:
        present = await self._presence.of([block.cid for block in blocks])
        async with self._requests:
            self._kept += [block.cid for block in blocks if block.cid in present]
            missing = [block for block in blocks if block.cid not in present]
            if not missing:
                return
            if self._import is None:
                # Without pinning, so that it does not ask for the lock again behind a collector that waits for the guard.
                self._import = Import(self._rpc, pin_roots=False)
                self._nursery.start_soon(self._import.run)
            await self._import.send(missing)
            self._sending.update((block.cid, len(block.data)) for block in missing)

    async def _finish_import(self) -> None:
        if self._import is None:
            return
        request, self._import = self._import, None
        await request.finish()
        self._new_blocks += len(self._sending)
        self._new_bytes += sum(self._sending.values())
        self._kept += self._sending
        self._sending = {}

    def _resume(self) -> None:
        self._guard = Import(self._rpc, pin_roots=True)
        self._nursery.start_soon(self._guard.run)

    def _settle(self, blocks: int) -> None:
        self._open = max(self._open - blocks, 0)
        if not self._open:
            self._idle.set()

    def _check(self) -> None:
        if self._failure is not None:
            raise type(self._failure)(self._failure.message, hint=self._failure.hint) from self._failure


def _keeper(cids: Sequence[Cid]) -> Block:
    data = dagcbor.encode([dagcbor.CidLink(cid) for cid in cids])
    return Block(cid_of(DAG_CBOR, data), data)


def _batched(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """``items`` in runs of ``size``."""
    return [items[at : at + size] for at in range(0, len(items), size)]
