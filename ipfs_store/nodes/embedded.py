"""The node that needs no daemon: a block store in a folder, and peers over HTTP for what it lacks."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import trio

from ipfs_store.cids import RAW, Cid, codec_of, format_cid
from ipfs_store.errors import BlockNotFound, IpfsStoreError, StorageFailed
from ipfs_store.nodes.blockstore import BlockStore, StoreStats
from ipfs_store.nodes.flights import Flights
from ipfs_store.nodes.interface import Block, GcResult, Push
from ipfs_store.nodes.pins import Pins
from ipfs_store.nodes.runs import Runs
from ipfs_store.nodes.staging import Staging
from ipfs_store.nodes.together import Together

if TYPE_CHECKING:
    from ipfs_store.nodes.exchange.client import PeerClient

_log = logging.getLogger(__name__)
T = TypeVar("T")

DEFAULT_TIMEOUT = 30.0
"""Seconds that a block is looked for at the peers."""
_DISK_THREADS = 8
_READ_TOGETHER = 128  # blocks
_PIN_BATCH = 128  # blocks looked at in one go of a thread, and asked for at a time


def default_path() -> Path:
    """``$IPFS_STORE_PATH``; else ``/var/lib/ipfs-store`` for root, ``$XDG_DATA_HOME/ipfs-store`` for everybody else."""
    if given := os.environ.get("IPFS_STORE_PATH"):
        return Path(given).expanduser()
    if os.geteuid() == 0:
        return Path("/var/lib/ipfs-store")
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "ipfs-store"


class EmbeddedNode:
    """A ``Node`` on a folder. Other processes may use the folder at the same time."""

    name = "embedded"

    def __init__(
        self,
        path: Path | None = None,
        *,
        peers: Sequence[str] = (),
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        """Open the folder (see ``default_path``), made if missing; raises StorageFailed.

        ``peers``: base URLs of trustless gateways, as ``ipfs-store serve`` and Kubo are; ``timeout`` in seconds: how long they are asked.
        """
        self.store = BlockStore(path or default_path())
        self._pins = Pins(self.store.path / "pins")
        self._timeout = timeout
        self._peers = tuple(peers)
        self._client: PeerClient | None = None
        self._runs = Runs(self._fetch_one, self._fetch_run)
        self._flights = Flights[Cid, bytes]()
        self._disk = trio.CapacityLimiter(_DISK_THREADS)
        self._together = Together[Cid, bytes | None](self.local_many, _READ_TOGETHER)
        self._pushes: set[Staging] = set()
        self._full = False

    async def get(self, cid: Cid, *, timeout: float | None = None) -> bytes:
        """The block, from the store or a peer; what a peer sent is stored. See ``Node.get``."""
        data = await self._together.get(cid)
        if data is not None:
            if self._peers:
                self._runs.note(cid, data)
            return data
        return await self._get_from_peers(cid, self._timeout if timeout is None else timeout)

    async def _get_from_peers(self, cid: Cid, seconds: float) -> bytes:
        return await self._flights.run(cid, partial(self._runs.fetch, cid, seconds), seconds, partial(self._not_found, cid, seconds))

    async def local(self, cid: Cid) -> bytes | None:
        """The block, if the store itself has it, verified; nobody else is asked."""
        return await self._on_disk(self.store.read, cid)

    async def local_many(self, cids: Sequence[Cid]) -> list[bytes | None]:
        """Those of the blocks that the store itself has, verified, in one go of a thread: for a range of a file, one leaf of 32 KiB at a time
        costs more than its bytes."""
        return await self._on_disk(self.store.read_many, cids)

    def unverified(self, cids: Sequence[Cid]) -> list[bytes | memoryview | None]:
        """Those of the blocks that the store itself has, not hashed: for who holds what comes of them to digests of its own. In a thread."""
        return self.store.read_unverified(cids)

    async def local_run(self, cids: Sequence[Cid]) -> int:
        """How many of the blocks, from the first on, the store itself has; none of them is read."""
        missing = await self._on_disk(self.store.missing, cids)
        return cids.index(missing[0]) if missing else len(cids)

    async def has(self, cid: Cid) -> bool:
        """Whether the store has the block."""
        return await self._on_disk(self.store.has, cid)

    async def delete(self, cid: Cid) -> None:
        """Forget a block, even a pinned one."""
        await self._on_disk(self.store.delete, cid)

    async def blocks(self) -> AsyncIterator[Cid]:
        """Every CID in the store."""
        batches = self.store.cids()
        while batch := await self._on_disk(next, batches, []):
            for cid in batch:
                yield cid

    async def stats(self) -> StoreStats:
        """Blocks and bytes in the store."""
        return await self._on_disk(self.store.stats)

    @asynccontextmanager
    async def push(self) -> AsyncIterator[Push]:
        """Open a push. Pin before leaving it: from then on the collector may have what no pin reaches."""
        staging = await self._on_disk(Staging, self.store)
        self._pushes.add(staging)
        push = EmbeddedPush(staging)
        try:
            yield push
            await push.flush()
        finally:
            self._pushes.discard(staging)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(push.close)

    async def pin(self, root: Cid, *, name: str = "") -> None:
        """Keep ``root`` and all below it, fetching what is missing; see ``Node.pin``."""
        staging = await self._on_disk(Staging, self.store)
        try:
            before = await self._on_disk(self._pins.name, root)
            reached = await self._complete(root, staging)
            # What a push brought is on the disk, and so is what an older pin keeps; the rest may have been fetched a moment ago.
            if reached.fetched or (reached.found and before is None):
                await self._on_disk(staging.sync)
            if before != name:
                await self._on_disk(self._pins.add, root, name)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(staging.close)

    async def unpin(self, root: Cid) -> None:
        """Stop keeping; raises NotFound."""
        await self._on_disk(self._pins.remove, root)

    async def pins(self) -> dict[Cid, str]:
        """Pinned roots and their names."""
        return await self._on_disk(self._pins.names)

    async def gc(self) -> GcResult:
        """Delete what no pin reaches and no open push, of any process, brought; see ``collect``."""
        from ipfs_store.nodes.collect import collect

        return await self._on_disk(collect, self.store, self._pins)

    async def aclose(self) -> None:
        """Close connections and files."""
        if self._client is not None:
            await self._client.aclose()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self.store.close)

    async def _on_disk(self, function: Callable[..., T], *args: object) -> T:
        return await trio.to_thread.run_sync(partial(function, *args), limiter=self._disk)

    async def _fetch_one(self, cid: Cid, seconds: float) -> bytes:
        data = await self._peers_for(cid).fetch(cid, timeout=seconds)
        self._runs.note(cid, data)
        await self._keep([Block(cid, data)])
        return data

    async def _fetch_run(self, root: Cid, start: int, end: int, wanted: Mapping[Cid, Callable[[bytes], None]]) -> None:
        async def take(blocks: list[Block]) -> None:
            asked = [block for block in blocks if block.cid in wanted]
            await self._keep(asked)
            for block in asked:
                wanted[block.cid](block.data)

        await self._peers_for(root).run(root, start, end, take)

    def _peers_for(self, cid: Cid) -> PeerClient:
        """The peers, opened when something is missing for the first time; raises BlockNotFound where there are none."""
        if not self._peers:
            raise BlockNotFound(
                f"{format_cid(cid)} is not in {self.store.path}, and there are no peers to ask",
                hint="name peers with IPFS_STORE_PEERS=http://HOST:PORT (on the other machine: `ipfs-store serve`), or use a Kubo node",
            )
        if self._client is None:
            from ipfs_store.nodes.exchange.client import PeerClient

            self._client = PeerClient(self._peers)
        return self._client

    async def _keep(self, blocks: list[Block]) -> None:
        try:
            await self._on_disk(self.store.write_many, blocks)
        except StorageFailed as error:
            # A reader is served all the same; who keeps blocks (`pin`) looks whether they are there.
            if not self._full:
                _log.warning("what peers send is not kept: %s", error.message)
            self._full = True
        else:
            self._full = False

    def _not_found(self, cid: Cid, seconds: float) -> IpfsStoreError:
        return BlockNotFound(
            f"{format_cid(cid)}: nobody sent it within {seconds:g} s", hint="check the peers, or allow more time with --timeout"
        )

    async def _complete(self, root: Cid, staging: Staging) -> _Reached:
        """Bring all that ``root`` reaches into the store, and save it from the collector while ``staging`` is open."""
        reached = _Reached()
        waiting = [root]
        seen = {root}
        while waiting:
            batch, waiting = waiting[-_PIN_BATCH:], waiting[:-_PIN_BATCH]
            missing, links, nodes = await self._on_disk(self._scan, batch, staging, reached)
            reached.fetched += len(missing)
            for cid, block in nodes if self._peers else ():
                self._runs.note(cid, block)
            links += await self._fetch_all(missing)
            for link in links:
                if link not in seen:
                    seen.add(link)
                    waiting.append(link)
        return reached

    def _scan(self, cids: list[Cid], staging: Staging, reached: _Reached) -> tuple[list[Cid], list[Cid], list[tuple[Cid, bytes]]]:
        """Which of these are missing, what the others link to, and those that do. What an open push knows to be here is not looked at again."""
        from ipfs_store.dag.links import links_of

        pushes = tuple(self._pushes)
        whole = {cid for cid in cids if any(cid in push.complete for push in pushes)}
        unknown = {cid for cid in cids if cid in whole or not any(cid in push.stored for push in pushes)}
        staging.keep(cids)  # all of them: a push that knows them may be over before the pin is there
        reached.found += len(unknown)
        missing = self.store.missing(cid for cid in cids if cid in unknown and cid not in whole and codec_of(cid) == RAW)
        links: list[Cid] = []
        found: list[tuple[Cid, bytes]] = []
        nodes = [cid for cid in cids if codec_of(cid) != RAW and cid not in whole]
        for cid, block in zip(nodes, self.store.read_many(nodes), strict=True):
            if block is None:
                missing.append(cid)
            else:
                found.append((cid, block))
                links += links_of(cid, block)
        return missing, links, found

    async def _fetch_all(self, cids: list[Cid]) -> list[Cid]:
        """Fetch these; the CIDs they link to."""
        from ipfs_store.dag.links import links_of

        links: list[Cid] = []
        failures: list[IpfsStoreError] = []

        async def one(cid: Cid) -> None:
            try:
                links.extend(links_of(cid, await self._get_from_peers(cid, self._timeout)))
            except IpfsStoreError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for cid in cids:  # all at once, so that neighbours go together; how many requests there are is for others to say
                nursery.start_soon(one, cid)
        if failures:
            raise failures[0]
        if lost := await self._on_disk(self.store.missing, cids):
            raise StorageFailed(f"{format_cid(lost[0])} came, and could not be kept in {self.store.path}", hint="is the disk full?")
        return links


@dataclass(slots=True)
class _Reached:
    """What pinning came by."""

    fetched: int = 0
    found: int = 0
    """Here, and not by a push that is open."""


class EmbeddedPush:
    """See ``Push``. A batch is written by a thread of the push, while who brought it makes the next: writing is the kernel's copying, making them
    hashing, and neither holds the interpreter's lock."""

    def __init__(self, staging: Staging) -> None:
        """A push into ``staging``."""
        self._staging = staging
        self._turn = trio.Lock()  # a commit must not meet a block that is half written
        self._writer = ThreadPoolExecutor(1, "push")
        self._written: Future[None] | None = None

    async def put(self, block: Block) -> None:
        """Write a block; raises StorageFailed."""
        await self.put_all([block])

    async def put_all(self, blocks: Sequence[Block]) -> None:
        """Have several written, once those before are; raises StorageFailed, which may be about those."""
        async with self._turn:
            await self._settle()
            self._written = self._writer.submit(self._staging.add, blocks)

    async def _settle(self) -> None:
        written, self._written = self._written, None
        if written is not None:
            await trio.to_thread.run_sync(written.result)

    async def holds(self, root: Cid) -> bool:
        """See ``Push.holds``; blocks count that were flushed, or there before."""
        return await trio.to_thread.run_sync(self._staging.holds, root)

    async def flush(self) -> None:
        """Return when all is on the disk and visible; raises StorageFailed."""
        async with self._turn:
            await self._settle()
            await trio.to_thread.run_sync(self._staging.commit)

    def close(self) -> None:
        """Wait for what is being written, and let go of the store; what was not flushed is gone."""
        self._writer.shutdown()
        self._staging.close()

    @property
    def new_blocks(self) -> int:
        """Blocks stored that were not there before (known after flush)."""
        return self._staging.new_blocks

    @property
    def new_bytes(self) -> int:
        """Their bytes."""
        return self._staging.new_bytes
