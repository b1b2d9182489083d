"""A set of blocks on its way into a block store: kept from the collector at once, visible when it is on the disk."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ipfs_store.cids import RAW, Cid, codec_of
from ipfs_store.cids.cid import identity_block
from ipfs_store.dag.links import links_of
from ipfs_store.errors import StorageFailed
from ipfs_store.nodes.blockstore import BlockStore, OwnedFolder, write_file
from ipfs_store.nodes.interface import Block
from ipfs_store.nodes.locks import locked, storage_failed

_log = logging.getLogger(__name__)

JOURNAL = "journal"
_WRITE_OUT = 16 << 20
"""Bytes written between two times that the disk is set to work: ``commit`` then waits for the last of them, not for all."""


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
        self._disk = store.open_disk()
        try:
            self._folder = OwnedFolder.make(store.path / "open")
        except BaseException:
            os.close(self._disk)
            raise
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
        self._shards: set[str] = set()
        self._unwritten = 0
        self._writing_out: threading.Thread | None = None
        path = self._folder.path / JOURNAL
        try:
            self._journal = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._folder.remove()
            os.close(self._disk)
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
                self._prepare(staged.path)
                write_file(staged.temporary, block.data, block.cid)
            except BaseException:
                with self._mutex:
                    del self._staged[block.cid]
                raise
            self._unwritten += len(block.data)
        if self._unwritten >= _WRITE_OUT:
            self._write_out()

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
        self._join()
        self.sync()  # the data first, then the names: what has its name is complete, even after a power cut
        for staged in self._staged.values():
            self._store.adopt(staged.temporary, staged.path)
            self.new_blocks += 1
            self.new_bytes += staged.size
        self.sync()
        self.stored.update(self._staged)
        self._staged = {}

    def sync(self) -> None:
        """Return when all that is in the store is on the disk; raises StorageFailed, also for a write that failed since this was opened."""
        self._store.sync(self._disk)

    def close(self) -> None:
        """Let the collector have what is not pinned; what was not committed is gone."""
        self._join()
        os.close(self._journal)
        os.close(self._disk)
        self._folder.remove()

    def _prepare(self, path: str) -> None:
        """Make the folder where a block goes, before the disk has to be waited for: a store's first push makes a thousand, 80 µs each."""
        shard = os.path.dirname(path)  # noqa: PTH120
        if shard in self._shards:
            return
        try:
            os.mkdir(shard, 0o700)  # noqa: PTH102
        except FileExistsError:
            pass
        except OSError as error:
            raise storage_failed(error, shard, "make a folder") from error
        self._shards.add(shard)

    def _write_out(self) -> None:
        """Have the disk write what is staged so far, beside us."""
        with self._mutex:
            if self._writing_out is not None and self._writing_out.is_alive():
                return
            self._unwritten = 0
            self._writing_out = threading.Thread(target=self._sync_early, name="write-out")
            self._writing_out.start()

    def _sync_early(self) -> None:
        # By a descriptor of its own, so that the kernel tells of a failed write once more to ``commit``, which is who must know.
        try:
            disk = self._store.open_disk()
            try:
                self._store.sync(disk)
            finally:
                os.close(disk)
        except StorageFailed as error:
            _log.warning("%s; the push goes on, and fails when it counts on it", error)

    def _join(self) -> None:
        if self._writing_out is not None:
            self._writing_out.join()
            self._writing_out = None


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
