"""A set of blocks on its way into a block store: kept from the collector at once, visible when it is on the disk."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from ipfs_store.cids import RAW, Cid, codec_of
from ipfs_store.cids.cid import identity_block
from ipfs_store.dag.links import links_of
from ipfs_store.nodes.blockstore import BlockStore
from ipfs_store.nodes.index import Row
from ipfs_store.nodes.interface import Block
from ipfs_store.nodes.locks import locked, storage_failed
from ipfs_store.nodes.owned import OwnedFolder
from ipfs_store.nodes.packs import Appender, Place

JOURNAL = "journal"
_WRITE_OUT = 4 << 20
"""Bytes appended between two times that the disk is set to work: ``commit`` then waits for the last of them, not for all."""


class Staging:
    """Blocks of one push. ``add`` may be called from several threads at a time; ``commit`` and ``close`` from one.

    The journal lists every CID the push was given, before it is looked whether the block is there already: the collector reads
    it while it holds the store's lock alone, so it cannot delete a block that we then believe to be there.
    """

    def __init__(self, store: BlockStore) -> None:
        """Open a push; raises StorageFailed."""
        self._store = store
        self._disk = store.open_disk()
        try:
            self._folder = OwnedFolder.make(store.path / "open")
        except BaseException:
            os.close(self._disk)
            raise
        self._appender = Appender(store.packs)
        self._keeping, self._adding = threading.Lock(), threading.Lock()
        self._kept: set[Cid] = set()
        self._staged: dict[Cid, Place] = {}
        self._found: dict[Cid, Place] = {}
        self.stored: set[Cid] = set()
        """What was added and is on the disk, since ``commit``."""
        self.complete: set[Cid] = set()
        """Roots of which all was found to be here (``holds``)."""
        self.new_blocks = 0
        self.new_bytes = 0
        self._unwritten = 0
        path = self._folder.path / JOURNAL
        try:
            self._journal = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._folder.remove()
            os.close(self._disk)
            raise storage_failed(error, path, "open a journal") from error

    def keep(self, cids: Iterable[Cid]) -> None:
        """Save these from the collector until ``close``, whether they are here or not; raises StorageFailed."""
        with self._keeping:
            fresh = [cid for cid in dict.fromkeys(cids) if cid not in self._kept]
            if not fresh:
                return
            record = b"".join(bytes((len(cid),)) + cid for cid in fresh)
            try:
                with locked(self._store.lock, exclusive=False):
                    if os.write(self._journal, record) != len(record):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                raise storage_failed(error, self._folder.path / JOURNAL, "write a journal") from error
            self._kept.update(fresh)

    def add(self, blocks: Sequence[Block]) -> None:
        """Append what is new to a pack; raises StorageFailed."""
        usual = {block.cid: block for block in blocks if identity_block(block.cid) is None}
        self.keep(usual)
        with self._adding:
            fresh = [cid for cid in usual if cid not in self._staged]
            self._found.update(self._store.find(fresh))
            new = [usual[cid] for cid in fresh if cid not in self._found]
            if not new:
                return
            self._staged.update(zip((block.cid for block in new), self._appender.append(new), strict=True))
            self._unwritten += sum(len(block.data) for block in new)
            if self._unwritten >= _WRITE_OUT:
                self._unwritten = 0
                self._appender.start_writing()

    def holds(self, root: Cid) -> bool:
        """Whether all that ``root`` reaches is in the store; from before it is looked at it is safe from the collector. Raises StorageFailed."""
        waiting, seen = [root], {root}
        while waiting:
            self.keep(waiting)  # before looking: what is there then stays there
            if self._store.missing(cid for cid in waiting if codec_of(cid) == RAW):
                return False
            nodes = [cid for cid in waiting if codec_of(cid) != RAW]
            links: list[Cid] = []
            for cid, block in zip(nodes, self._store.read_many(nodes), strict=True):
                if block is None:
                    return False
                links += links_of(cid, block)
            waiting = [link for link in dict.fromkeys(links) if link not in seen]
            seen.update(waiting)
        self.complete.add(root)
        return True

    def commit(self) -> None:
        """Return when everything added is on the disk and visible; raises StorageFailed."""
        with self._adding:
            staged, found = self._staged, self._found
            if not staged and not found:
                return
            self._appender.sync()  # the data first, then the rows: what has a row is complete, even after a power cut
            # What was there may have been fetched a moment ago, and nobody waited for the disk. If it was not, this is quick.
            self._store.packs.sync({place.pack for place in found.values()})
            self._store.repaired(partial(self._make_visible, [Row(place.location, place.size, cid) for cid, place in staged.items()]))
            self._appender.keep()
            self.new_blocks += len(staged)
            self.new_bytes += sum(place.size for place in staged.values())
            self.stored.update(staged, found)
            self._staged, self._found = {}, {}

    def sync(self) -> None:
        """Return when all that is in the store is on the disk; raises StorageFailed, also for a write that failed since this was opened."""
        self._store.sync(self._disk)

    def close(self) -> None:
        """Let the collector have what is not pinned; what was not committed is gone."""
        os.close(self._journal)
        os.close(self._disk)
        self._appender.close()
        self._folder.remove()

    def _make_visible(self, rows: list[Row]) -> None:
        with locked(self._store.lock, exclusive=False):  # nobody replaces the index meanwhile
            self._store.index.insert(rows, durable=True)


class Journals:
    """What all open pushes of all processes keep, read by the collector while it holds the store's lock alone."""

    def __init__(self, parent: Path) -> None:
        """Journals of the folders under ``parent``."""
        self._parent = parent
        self._offsets: dict[str, int] = {}

    def fresh(self) -> Iterator[Cid]:
        """The CIDs that were added since the last call; raises StorageFailed."""
        try:
            for folder in list(self._parent.iterdir()):
                path = folder / JOURNAL
                offset = self._offsets.get(folder.name, 0)
                try:
                    with path.open("rb") as file:
                        file.seek(offset)
                        data = file.read()
                except FileNotFoundError:
                    continue
                at = 0
                while at < len(data) and at + 1 + data[at] <= len(data):
                    yield Cid(data[at + 1 : at + 1 + data[at]])
                    at += 1 + data[at]
                self._offsets[folder.name] = offset + at
        except OSError as error:
            raise storage_failed(error, self._parent, "read journals") from error
