"""Garbage collection of a block store: mark what the pins reach, delete the rest, while others read, push and pin.

Marking takes no lock. Deleting goes in steps, alone with the store for the milliseconds that one step takes. Before each
step it takes in what open pushes were given since, *then* which pins are new: a push that pins and closes between the two
looks is seen by the second.

What is deleted has no row any more; only then are its bytes freed, so that whoever read where they are finds bytes that do not match and looks
again. Parts of packs are given back as holes; where the file system has none, or little is left of a pack, its blocks move to another.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from ipfs_store.cids import RAW, Cid, codec_of, format_cid
from ipfs_store.dag.links import links_of
from ipfs_store.errors import BlockNotFound, StorageFailed
from ipfs_store.nodes.blockstore import BlockStore
from ipfs_store.nodes.index import IndexDamaged, Row
from ipfs_store.nodes.interface import GcResult
from ipfs_store.nodes.locks import locked
from ipfs_store.nodes.pins import Pins
from ipfs_store.nodes.reclaim import free_rows, free_space
from ipfs_store.nodes.staging import Journals

_log = logging.getLogger(__name__)
_STEP = 1000  # rows that are looked at with the store's lock held: some 10 ms if all of them go
_READ = 64  # blocks of a DAG that are read at once


def collect(store: BlockStore, pins: Pins) -> GcResult:
    """Delete what no pin reaches and no open push was given.

    Raises BlockNotFound, before anything is deleted, where a pinned DAG has lost a block: what lies below it cannot be known; StorageFailed.
    """
    with locked(store.path / "gc.lock", exclusive=True, timeout=600):
        return store.repaired(partial(_collect, store, pins))


def _collect(store: BlockStore, pins: Pins) -> GcResult:
    marking = _Marking(store, pins)
    marking.catch_up()
    journals = Journals(store.path / "open")
    pushed: set[Cid] = set()
    blocks = size = 0
    touched: set[int] = set()
    location: int | None = 0
    while location is not None:
        with locked(store.lock, exclusive=True):
            pushed.update(journals.fresh())
            if pins.roots() <= marking.roots:
                rows = store.index.after(location, _STEP)
                dead = [row for row in rows if row.cid not in marking.reached and row.cid not in pushed]
                _delete(store, dead)
                blocks += len(dead)
                size += sum(row.size for row in dead)
                touched.update(row.place.pack for row in dead)
                location = rows[-1].location + 1 if len(rows) == _STEP else None
                continue
        marking.catch_up()  # without the lock: it may take long
    free_space(store, touched)
    _log.info("%s: freed %d blocks, %d bytes", store.path, blocks, size)
    return GcResult(blocks, size)


def _delete(store: BlockStore, dead: Sequence[Row]) -> None:
    if not dead:
        return
    try:
        store.index.delete(row.location for row in dead)
    except IndexDamaged:
        raise
    except StorageFailed as error:
        # On a full disk the index has no room for its log. So make some first; whoever reads one of these blocks meanwhile finds it damaged.
        _log.info("%s; freeing blocks first", error)
        free_rows(store, dead)
        store.index.delete(row.location for row in dead)


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
            some = [cid for cid in dict.fromkeys(waiting[-_READ:]) if cid not in self.reached]
            del waiting[-_READ:]
            self.reached.update(some)
            nodes = [cid for cid in some if codec_of(cid) != RAW]  # leaves are not read: one that is gone keeps nothing else alive
            for cid, block in zip(nodes, self._store.read_many(nodes), strict=True):
                if block is not None:
                    waiting.extend(link for link in links_of(cid, block) if link not in self.reached)
                    continue
                raise BlockNotFound(
                    f"{self._store.path}: the pinned {format_cid(root)} has lost its block {format_cid(cid)}; nothing more was deleted",
                    hint=f"pin {format_cid(root)} again while a peer that has it answers, or unpin it",
                )
