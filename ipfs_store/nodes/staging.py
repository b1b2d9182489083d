"""A set of blocks on its way into a block store: kept from the collector at once, visible when it is on the disk."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ipfs_store.cids import RAW, Cid, codec_of
from ipfs_store.cids.cid import identity_block
from ipfs_store.dag.links import links_of
from ipfs_store.nodes.blockstore import BlockStore, OwnedFolder, write_file
from ipfs_store.nodes.interface import Block
from ipfs_store.nodes.locks import locked, storage_failed

JOURNAL = "journal"


class _Staged(NamedTuple):
    """A block that was written and has no name yet."""

    size: int
    temporary: str
    path: str
    """Where it goes. Kept: making it takes 10 µs, a third of what a block costs us beside the disk."""


class Staging:
    """Blocks of one push. ``add`` may be called from several threads at a time; ``commit`` and ``close`` from one.

    The journal lists every CID the push was given, before it is looked whether the block is there already: the collector reads
    it while it holds the store's lock alone, so it cannot delete a block that we then believe to be there.
    """

    def __init__(self, store: BlockStore) -> None:
        """Open a push; raises StorageFailed."""
        self._store = store
        self._folder = OwnedFolder.make(store.path / "open")
        self._mutex = threading.Lock()
        self._kept: set[Cid] = set()
        self._staged: dict[Cid, _Staged] = {}
        self._count = 0
        self._added: list[Cid] = []
        self.stored: set[Cid] = set()
        """What was added and is on the disk, since ``commit``."""
        self.complete: set[Cid] = set()
        """Roots of which all was found to be here (``holds``)."""
        self.new_blocks = 0
        self.new_bytes = 0
        path = self._folder.path / JOURNAL
        try:
            self._journal = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._folder.remove()
            raise storage_failed(error, path, "open a journal") from error

    def keep(self, cids: Iterable[Cid]) -> None:
        """Save these from the collector until ``close``, whether they are here or not; raises StorageFailed."""
        with self._mutex:
            fresh = [cid for cid in dict.fromkeys(cids) if cid not in self._kept]
            if not fresh:
                return
            record = b"".join(bytes((len(cid),)) + cid for cid in fresh)
            try:
                with locked(self._store.path / "lock", exclusive=False):
                    if os.write(self._journal, record) != len(record):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                raise storage_failed(error, self._folder.path / JOURNAL, "write a journal") from error
            self._kept.update(fresh)

    def add(self, blocks: Sequence[Block]) -> None:
        """Write what is new; raises StorageFailed."""
        usual = [block for block in blocks if block.cid[2:4] == b"\x12\x20" or identity_block(block.cid) is None]
        self.keep(block.cid for block in usual)
        for block in usual:
            # A file of another length than the block's was torn by a power cut; it is written again.
            if self._store.size(block.cid) == len(block.data):
                with self._mutex:
                    self._added.append(block.cid)
                continue
            with self._mutex:
                if block.cid in self._staged:
                    continue
                self._count += 1
                staged = _Staged(len(block.data), f"{self._folder.path}/{self._count}", self._store.path_of(block.cid))
                self._staged[block.cid] = staged
            try:
                write_file(staged.temporary, block.data, block.cid)
            except BaseException:
                with self._mutex:
                    del self._staged[block.cid]
                raise

    def holds(self, root: Cid) -> bool:
        """Whether all that ``root`` reaches is in the store; from before it is looked at it is safe from the collector. Raises StorageFailed."""
        waiting, seen = [root], {root}
        while waiting:
            self.keep(waiting)  # before looking: what is there then stays there
            links: list[Cid] = []
            for cid in waiting:
                if codec_of(cid) == RAW:
                    if not self._store.has(cid):
                        return False
                elif (block := self._store.read(cid)) is None:
                    return False
                else:
                    links += links_of(cid, block)
            waiting = [link for link in dict.fromkeys(links) if link not in seen]
            seen.update(waiting)
        self.complete.add(root)
        return True

    def commit(self) -> None:
        """Return when everything added is on the disk and visible; raises StorageFailed."""
        self.stored.update(self._added)  # an older commit, or a fetch whose bytes were all there
        self._added = []
        if not self._staged:
            return
        self._store.sync()  # the data first, then the names: what has its name is complete, even after a power cut
        for staged in self._staged.values():
            self._store.adopt(staged.temporary, staged.path)
            self.new_blocks += 1
            self.new_bytes += staged.size
        self._store.sync()
        self.stored.update(self._staged)
        self._staged = {}

    def close(self) -> None:
        """Let the collector have what is not pinned; what was not committed is gone."""
        os.close(self._journal)
        self._folder.remove()


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
