"""Garbage collection of a block store: mark what the pins reach, delete the rest, while others read, push and pin.

Marking takes no lock. Deleting goes shard by shard, alone with the store for the milliseconds that one shard takes. Before each
shard it takes in what open pushes were given since, *then* which pins are new: a push that pins and closes between the two
looks is seen by the second.
"""

from __future__ import annotations

import logging

from ipfs_store.cids import RAW, Cid, codec_of, format_cid
from ipfs_store.dag.links import links_of
from ipfs_store.errors import BlockNotFound, StorageFailed
from ipfs_store.nodes.blockstore import BlockStore
from ipfs_store.nodes.interface import GcResult
from ipfs_store.nodes.locks import locked
from ipfs_store.nodes.pins import Pins
from ipfs_store.nodes.staging import Journals

_log = logging.getLogger(__name__)


def collect(store: BlockStore, pins: Pins) -> GcResult:
    """Delete what no pin reaches and no open push was given.

    Raises BlockNotFound, before anything is deleted, where a pinned DAG has lost a block: what lies below it cannot be known.
    """
    with locked(store.path / "gc.lock", exclusive=True, timeout=600):
        marking = _Marking(store, pins)
        marking.catch_up()
        journals = Journals(store.path / "open")
        pushed: set[Cid] = set()
        blocks = size = 0
        for name in store.shards():
            while True:
                with locked(store.path / "lock", exclusive=True):
                    pushed.update(journals.fresh())
                    if pins.roots() <= marking.roots:
                        freed = _sweep(store, name, (marking.reached, pushed))
                        blocks += freed.blocks
                        size += freed.bytes
                        break
                marking.catch_up()  # without the lock: it may take long
        _log.info("%s: freed %d blocks, %d bytes", store.path, blocks, size)
        return GcResult(blocks, size)


class _Marking:
    """What the pins reach, as far as they are known."""

    def __init__(self, store: BlockStore, pins: Pins) -> None:
        self._store = store
        self._pins = pins
        self.roots: set[Cid] = set()
        self.reached: set[Cid] = set()

    def catch_up(self) -> None:
        """Mark the pins that are new; raises BlockNotFound."""
        while fresh := self._pins.roots() - self.roots:
            for root in fresh:
                try:
                    self._mark(root)
                except BlockNotFound:
                    if root in self._pins.roots():
                        raise
                    # It was unpinned meanwhile. What was marked on its behalf is not walked to the end: start again.
                    self.roots.clear()
                    self.reached.clear()
                    break
                self.roots.add(root)

    def _mark(self, root: Cid) -> None:
        waiting = [root]
        while waiting:
            cid = waiting.pop()
            if cid in self.reached:
                continue
            self.reached.add(cid)
            if codec_of(cid) == RAW:
                continue  # not read: a leaf that is gone keeps nothing else alive
            block = self._store.read(cid)
            if block is None:
                raise BlockNotFound(
                    f"{self._store.path}: the pinned {format_cid(root)} has lost its block {format_cid(cid)}; nothing more was deleted",
                    hint=f"pin {format_cid(root)} again while a peer that has it answers, or unpin it",
                )
            waiting.extend(link for link in links_of(cid, block) if link not in self.reached)


def _sweep(store: BlockStore, shard: str, kept: tuple[set[Cid], set[Cid]]) -> GcResult:
    blocks = size = 0
    for cid, _ in list(store.shard(shard)):
        if cid not in kept[0] and cid not in kept[1]:
            try:
                size += store.delete(cid)
            except StorageFailed as error:
                _log.warning("%s", error)
                continue
            blocks += 1
    return GcResult(blocks, size)
