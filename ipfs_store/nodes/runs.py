"""Leaves that lie side by side in a file, asked of a peer together: one request for a range of the file, where each leaf would take its own.

A leaf by itself costs a request of a millisecond on both sides, whatever its size. Whoever reads a file or pins one asks for many at a time; those
of one parent that are next to each other become a run. Who asks first asks for himself and for those who wait. Nobody waits to be joined: with little
going on, a leaf is asked for at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import trio

from ipfs_store.cids import DAG_PB, RAW, Cid, codec_of
from ipfs_store.dag.unixfs import FileNode, decode_file_node
from ipfs_store.errors import InvalidDag

_AT_ONCE = 4
"""Requests in flight before neighbours wait for each other: a LAN is full at 4."""
_SINGLE = 16
"""Requests for single blocks in flight: a link of 200 Mbit/s is full at 4, one of 1 Gbit/s at about 16."""
_SHORTEST = 3  # leaves; the parent, 8 KiB, comes along with each run
_LONGEST = 4 << 20  # bytes of leaves in a run
_GAP = 8 << 10  # bytes between two of them that nobody wants: here already, or in the CID itself, as tar headers are
_PARENTS = 64  # remembered: 11,000 leaves, some megabytes of memory

Fetch = Callable[[Cid, float], Awaitable[bytes]]


class FetchRun(Protocol):
    """Asks for a range of a file."""

    async def __call__(self, root: Cid, start: int, end: int, wanted: Mapping[Cid, Callable[[bytes], None]]) -> None:
        """Call what ``wanted`` has for each block that comes, verified and kept. Not all need to come; it raises nothing."""
        ...


class _Want:
    def __init__(self, parent: Cid, index: int) -> None:
        self.parent = parent
        self.index = index
        self.asked = False
        self.data: bytes | None = None
        self.over = False
        self.changed = trio.Event()

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def arrived(self, data: bytes) -> None:
        self.data, self.over = data, True
        self.wake()


class Runs:
    """Fetches blocks, neighbours together."""

    def __init__(self, fetch: Fetch, fetch_run: FetchRun) -> None:
        """``fetch``: one block, from whoever has it, within some seconds; it is asked also for what does not come in a run."""
        self._fetch = fetch
        self._fetch_run = fetch_run
        self._nodes: OrderedDict[Cid, FileNode] = OrderedDict()
        self._parents: dict[Cid, tuple[Cid, int]] = {}
        self._wants: dict[Cid, _Want] = {}
        self._running = 0
        self._single = trio.Semaphore(_SINGLE)

    def note(self, cid: Cid, block: bytes) -> None:
        """Remember what ``block`` links to, if it is an interior block of a file."""
        if codec_of(cid) != DAG_PB or cid in self._nodes:
            return
        try:
            node = decode_file_node(cid, block)
        except InvalidDag:
            return  # a directory, or nothing for us to judge
        self._nodes[cid] = node
        # Leaves alone: a range of the file with several interior blocks would bring all that is below them.
        self._parents.update((child.cid, (cid, index)) for index, child in enumerate(node.children) if codec_of(child.cid) == RAW)
        if len(self._nodes) > _PARENTS:
            old, forgotten = self._nodes.popitem(last=False)
            for child in forgotten.children:
                if self._parents.get(child.cid, (None, 0))[0] == old:
                    del self._parents[child.cid]

    async def fetch(self, cid: Cid, seconds: float) -> bytes:
        """The block, once for all who ask at a time; raises what ``fetch`` does."""
        deadline = trio.current_time() + seconds
        known = self._parents.get(cid)
        if known is None or cid in self._wants:
            return await self._alone(cid, deadline)
        want = self._wants[cid] = _Want(*known)
        try:
            await trio.lowlevel.checkpoint()  # who asks in the same moment is in, too
            while not want.over and trio.current_time() < deadline:
                if not want.asked and (self._running < _AT_ONCE or len(self._run(cid, want)) == 1):
                    return await self._lead(cid, want, deadline)
                with trio.move_on_at(deadline):
                    await want.changed.wait()
        finally:
            del self._wants[cid]
        return want.data if want.data is not None else await self._alone(cid, deadline)

    async def _alone(self, cid: Cid, deadline: float) -> bytes:
        # More at a time would wait for connections while their peers' answers are timed.
        with trio.move_on_at(deadline) as late:
            await self._single.acquire()
        if late.cancelled_caught:
            return await self._fetch(cid, 0)  # which says so
        try:
            return await self._fetch(cid, round(max(deadline - trio.current_time(), 0), 2))  # errors name it
        finally:
            self._single.release()

    async def _lead(self, cid: Cid, want: _Want, deadline: float) -> bytes:
        """Ask for a block, with its neighbours that nobody has asked for yet."""
        run = self._run(cid, want)
        node = self._nodes.get(want.parent)
        together = run if node is not None and len(run) >= _SHORTEST else {cid: want}
        for each in together.values():
            each.asked = True
        self._running += 1
        try:
            if node is not None and len(together) > 1:
                indices = [each.index for each in together.values()]
                start = node.ends[min(indices) - 1] if min(indices) else len(node.data)
                with trio.move_on_at(deadline):
                    await self._fetch_run(
                        want.parent, start, node.ends[max(indices)], {key: each.arrived for key, each in together.items()}
                    )
            if want.data is not None:
                return want.data
            return await self._alone(cid, deadline)
        finally:
            self._running -= 1
            for each in together.values():
                if not each.over:
                    each.over = True  # it did not come: each by itself
                    each.wake()
            for each in self._wants.values():
                if not each.asked:
                    each.wake()
                    break

    def _run(self, cid: Cid, want: _Want) -> dict[Cid, _Want]:
        """The wanted neighbours on both sides, and itself."""
        node = self._nodes.get(want.parent)
        run = {cid: want}
        if node is None:
            return run
        size = node.children[want.index].size
        for step in (1, -1):
            index = want.index + step
            gap = 0
            while 0 <= index < len(node.children) and gap <= _GAP and size <= _LONGEST:
                child = node.children[index]
                other = self._wants.get(child.cid)
                size += child.size
                gap += child.size
                if other is not None and not other.asked and (other.parent, other.index) == (want.parent, index) and size <= _LONGEST:
                    run[child.cid] = other
                    gap = 0
                index += step
        return run
