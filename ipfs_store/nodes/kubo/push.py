"""A push into Kubo: what it lacks, as one streamed CAR, with its garbage collector kept out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from ipfs_store.cids import DAG_CBOR, RAW, Cid, cid_of, codec_of, format_cid, verify_block
from ipfs_store.cids.cid import identity_block
from ipfs_store.dag import dagcbor
from ipfs_store.dag.links import links_of
from ipfs_store.errors import IpfsStoreError
from ipfs_store.nodes.interface import Block
from ipfs_store.nodes.kubo.imports import Import
from ipfs_store.nodes.kubo.pins import pin_name, put_pinned
from ipfs_store.nodes.kubo.presence import Presence, is_missing
from ipfs_store.nodes.kubo.rpc import Rpc, RpcError

# Bytes of blocks that are looked up and sent together, or fewer where the push waits for them; a request and a wait for each would cost as much as the block.
_TOGETHER = 1 << 20
_WAITING = 8 << 20  # bytes after which `put` waits
_LOCK_TIMEOUT = 1.0  # seconds; a pin is made in milliseconds where nobody holds the lock
_LINKS = 8000  # of one keeper block: 41 bytes each, so it stays under 1 MiB, which every IPFS node takes


class KuboPush:
    """See ``Push``. ``run`` has to run beside it.

    What guards it: an import without blocks that stays open as long as the push, and for which Kubo holds its pin lock, as for
    every import that may pin. ``repo gc`` waits for that lock. It would also make a pin wait behind a collector that waits for
    us, see ``pin``. It is made when it is first needed: a push that finds its image pinned brings nothing.
    """

    def __init__(self, rpc: Rpc) -> None:
        """Nothing is asked yet."""
        self._rpc = rpc
        self._presence = Presence(rpc)
        self._waiting: list[Block] = []
        self._bytes = 0  # of blocks put and not yet handed to Kubo or found there
        self._open = 0  # how many those are
        self._work = trio.Event()  # some of them are to be handed over now
        self._progress = trio.Event()  # some were; another event from then on
        self._failure: IpfsStoreError | None = None
        self._requests = trio.Lock()  # held by whoever begins, feeds or ends one of the two requests below
        self._import: Import | None = None
        self._guard: Import | None = None
        self._seen: set[Cid] = set()
        self._inner: dict[Cid, bytes] = {}  # those of them that have links, some 0.2 % of all bytes
        self._whole: set[Cid] = set()  # found to be in Kubo with all below them
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

    async def put(self, block: Block) -> None:
        """Queue a block; raises the failure of an earlier one."""
        await self.put_all([block])

    async def put_all(self, blocks: Sequence[Block]) -> None:
        """Queue several; raises as ``put`` does."""
        self._check()
        for block in blocks:
            if block.cid not in self._seen and (block.cid[2:4] == b"\x12\x20" or identity_block(block.cid) is None):
                self._seen.add(block.cid)
                self._waiting.append(block)
                if codec_of(block.cid) != RAW:
                    self._inner[block.cid] = block.data
                self._open += 1
                self._bytes += len(block.data)
        if self._bytes >= _TOGETHER:
            self._work.set()
        await trio.lowlevel.checkpoint()
        while self._bytes > _WAITING and self._failure is None:
            await self._progress.wait()
        self._check()

    async def holds(self, root: Cid) -> bool:
        """See ``Push.holds``: what is pinned is taken to be there, for Kubo deletes nothing of it; else the DAG is walked."""
        if await pin_name(self._rpc, root) is None:
            async with self._requests:
                await self._ensure_guard()
                if not await self._walk(root):
                    return False
                self._kept.append(root)
        self._whole.add(root)
        return True

    async def pin(self, root: Cid) -> bool:
        """Pin what this push knows to be in Kubo with all below it; False where it does not know that, or where a collector is before us."""
        await self.flush()
        block = self._inner.get(root)
        if block is None or not self._knows_all_of(root):
            return False
        with trio.move_on_after(_LOCK_TIMEOUT):
            await put_pinned(self._rpc, Block(root, block))
            return True
        return False

    async def flush(self) -> None:
        """Return when Kubo has stored everything put so far."""
        while self._open and self._failure is None:
            self._work.set()
            await self._progress.wait()
        self._check()
        async with self._requests:
            await self._finish_import()

    async def run(self) -> None:
        """Hand what is queued to Kubo, until cancelled or a failure, which ``put`` and ``flush`` then raise."""
        while self._failure is None:
            await self._work.wait()
            blocks, self._waiting = self._waiting, []
            self._work = trio.Event()
            try:
                await self._hand_over(blocks)
            except IpfsStoreError as error:
                self._failure = error
            self._open -= len(blocks)
            self._bytes -= sum(len(block.data) for block in blocks)
            if sum(len(block.data) for block in self._waiting) >= _TOGETHER:
                self._work.set()
            self._progress.set()
            self._progress = trio.Event()

    @asynccontextmanager
    async def suspended(self) -> AsyncIterator[None]:
        """Let the collector run: instead of the lock, a pinned block that links to all that was brought keeps it."""
        await self.flush()
        async with self._requests:
            keepers = [_keeper(self._kept[at : at + _LINKS]) for at in range(0, len(self._kept), _LINKS)]
            roots = [keeper.cid for keeper in keepers]
            guard, self._guard = self._guard, None
            try:
                if guard is not None:
                    await guard.finish(roots, keepers)
                yield
            finally:
                if guard is not None:
                    await self._ensure_guard()
                    for root in roots:
                        # Unpinned only, for the next collection to take: `block/rm` wants the collector's lock, which our own guard keeps from it.
                        await self._rpc.call("pin/rm", [("arg", format_cid(root))])

    async def close(self) -> None:
        """Let go of the guard."""
        async with self._requests:
            guard, self._guard = self._guard, None
            if guard is not None:
                await guard.finish()

    async def abandon(self) -> None:
        """Break off what is still open."""
        for request in (self._import, self._guard):
            if request is not None:
                request.close()
        await self._presence.aclose()

    def _knows_all_of(self, root: Cid) -> bool:
        waiting, met = [root], {root}
        while waiting:
            cid = waiting.pop()
            if cid in self._whole:
                continue
            block = self._inner.get(cid) if codec_of(cid) != RAW else b"" if cid in self._seen else None
            if block is None and (block := identity_block(cid)) is None:
                return False
            if codec_of(cid) != RAW:
                links = [link for link in links_of(cid, block) if link not in met]
                met.update(links)
                waiting += links
        return True

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
        async with self._requests:
            await self._ensure_guard()
            present = await self._presence.of([block.cid for block in blocks])
            self._kept += [block.cid for block in blocks if block.cid in present]
            missing = [block for block in blocks if block.cid not in present]
            if not missing:
                return
            if self._import is None:
                # Without pinning, so that it does not ask for the lock again behind a collector that waits for the guard.
                self._import = await Import.begin(self._rpc, pin_roots=False)
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

    async def _ensure_guard(self) -> None:
        """Have a guard; the first one is waited for."""
        if self._guard is None:
            # Over once no collector runs: what is found to be there from now on stays there.
            self._guard = await Import.begin(self._rpc, pin_roots=True)
            check = await Import.begin(self._rpc, pin_roots=True)
            await check.finish()

    def _check(self) -> None:
        if self._failure is not None:
            raise type(self._failure)(self._failure.message, hint=self._failure.hint) from self._failure


def _keeper(cids: Sequence[Cid]) -> Block:
    data = dagcbor.encode([dagcbor.CidLink(cid) for cid in cids])
    return Block(cid_of(DAG_CBOR, data), data)
