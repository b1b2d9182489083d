"""Blocks in a folder, many to a file, shared by any number of processes.

::

    STORE/version             "2"
    STORE/lock                short critical sections between writers (shared) and the collector (exclusive)
    STORE/packs/NUMBER.car    blocks, one behind the other (``packs``)
    STORE/index.sqlite        which block lies where (``index``): what is not in it is not here
    STORE/open/ID/            a push or process that writes; of a push, the journal of what must be kept
    STORE/pins/bafy...        a pinned root; the file holds the pin's name

Everything that this module and ``staging`` promise rests on three rules:

1. A block is written before its row. A row that is there says where a whole block was.
2. What a push brings is on the disk before it gets rows, and the rows are when the push says so (``staging``). What was merely fetched is not
   waited for: after a power cut it may be torn, and then rule 3 finds it out.
3. Every block is hashed when it is read. One that does not match is looked up again, since the collector may have been quicker than the reader;
   if it still does not, it is removed, logged, and counts as absent.

Nobody cleans up after a process that was killed, except the next one to open the store: each ``open/ID`` and each pack is locked by its
owner, so one that can be locked by somebody else has none.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from ipfs_store.cids import Cid, format_cid, verify_block
from ipfs_store.cids.cid import identity_block
from ipfs_store.errors import BlockMismatch, StorageFailed
from ipfs_store.nodes.disk import sync_file_system
from ipfs_store.nodes.index import Index, IndexDamaged, Row
from ipfs_store.nodes.interface import Block
from ipfs_store.nodes.locks import locked, storage_failed
from ipfs_store.nodes.owned import OwnedFolder, remove_abandoned
from ipfs_store.nodes.packs import Appender, Packs, Place, first_location, frame_head
from ipfs_store.nodes.scan import scan

_log = logging.getLogger(__name__)
T = TypeVar("T")
_VERSION = "2"
_RUN = 4 << 20  # bytes read at once, at most
_LISTED = 4096  # CIDs at a time
_GAP = 4096  # bytes between two blocks that are read along: less than another call costs


@dataclass(frozen=True, slots=True)
class StoreStats:
    """How much a store holds."""

    blocks: int
    bytes: int
    packs: int
    disk: int
    """Bytes that the packs take, with those of deleted blocks that were not collected yet."""


class BlockStore:
    """The folder. Every method is synchronous, blocks on the disk, may be called from any thread, and raises StorageFailed."""

    def __init__(self, path: Path) -> None:
        """Open the store at ``path``, made if missing, and clean up after killed processes."""
        self.path = path
        self.lock = path / "lock"
        self.index = Index(path / "index.sqlite")
        self.packs = Packs(path / "packs", self._end_of)
        self._appender = Appender(self.packs)
        self._mutex = threading.Lock()
        try:
            for folder in (path, path / "packs", path / "open", path / "pins"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_version()
        except OSError as error:
            raise storage_failed(error, path, "open the block store") from error
        if not self.index.inode():
            self._rebuild(0, "is gone")
        if remove_abandoned(path / "open"):
            for number in self.packs.numbers():
                self.packs.trim(number)
        self._own = OwnedFolder.make(path / "open")

    def close(self) -> None:
        """Give up what this object has open; it cannot write any more."""
        with self._mutex:
            self._appender.close()
        self.index.close()
        self._own.remove()

    def read(self, cid: Cid) -> bytes | None:
        """The block, verified; None if it is not here (a corrupt one is removed and logged)."""
        inside = identity_block(cid)
        if inside is not None:
            return inside
        place = self.place_of(cid)
        if place is None:
            return None
        data = self.packs.read(place.pack, place.offset, place.size)
        return data if _matches(cid, data) else self._second_look(cid)

    def read_many(self, cids: Sequence[Cid]) -> list[bytes | None]:
        """The blocks, each as ``read`` gives it; neighbours are read together."""
        found: dict[Cid, bytes] = {}
        for cid, data in self._read_all(cids):
            whole = bytes(data) if _matches(cid, data) else self._second_look(cid)
            if whole is not None:
                found[cid] = whole
        return [found.get(cid) for cid in cids]

    def read_unverified(self, cids: Sequence[Cid]) -> list[bytes | memoryview | None]:
        """The same, not hashed: for who holds what comes of them to another digest, and asks again where it does not fit."""
        found = dict(self._read_all(cids))
        return [found.get(cid) for cid in cids]

    def _read_all(self, cids: Sequence[Cid]) -> Iterator[tuple[Cid, bytes | memoryview]]:
        for cid in cids:
            inside = identity_block(cid)
            if inside is not None:
                yield cid, inside
        ordered = sorted(((place, cid) for cid, place in self.find(cids).items()), key=lambda item: item[0].location)
        for run in _runs(ordered):
            first, last = run[0][0], run[-1][0]
            read = memoryview(self.packs.read(first.pack, first.offset, last.offset + last.size - first.offset))
            for place, cid in run:
                yield cid, read[place.offset - first.offset :][: place.size]

    def has(self, cid: Cid) -> bool:
        """Whether the block is here, without reading it."""
        return identity_block(cid) is not None or self.place_of(cid) is not None

    def missing(self, cids: Iterable[Cid]) -> list[Cid]:
        """Those of the blocks that are not here, in order, without reading any."""
        wanted = [cid for cid in dict.fromkeys(cids) if identity_block(cid) is None]
        places = self.find(wanted)
        return [cid for cid in wanted if cid not in places]

    def size(self, cid: Cid) -> int | None:
        """The block's length in bytes, None if it is not here."""
        inside = identity_block(cid)
        if inside is not None:
            return len(inside)
        place = self.place_of(cid)
        return place.size if place is not None else None

    def place_of(self, cid: Cid) -> Place | None:
        """Where the block lies."""
        return self.find([cid]).get(cid)

    def find(self, cids: Sequence[Cid]) -> dict[Cid, Place]:
        """Where those of the blocks lie that are here."""
        while True:
            found = self.repaired(partial(self.index.find, cids))
            ends: dict[int, int] = {}
            for place in found.values():
                ends[place.pack] = max(ends.get(place.pack, 0), place.offset + place.size)
            # A file that was removed, or that a power cut left shorter than it was. The bytes of the others are hashed by who reads them.
            short = [pack for pack, end in ends.items() if self.packs.disk_usage(pack)[0] < end]
            if not short:
                return found
            for pack in short:
                self._forget_behind_end(pack)

    def write(self, cid: Cid, data: bytes) -> bool:
        """Store a verified block, without waiting for the disk; whether it is new."""
        return self.write_many([Block(cid, data)]) == 1

    def write_many(self, blocks: Sequence[Block]) -> int:
        """Store verified blocks of a few megabytes together, all or none, without waiting for the disk; how many are new."""
        fresh = {block.cid: block for block in blocks if identity_block(block.cid) is None}
        # One after the other, so that rows come in the order of their locations: before a pack's last row, what has none is free to be taken.
        with self._mutex:
            for cid in self.find(list(fresh)):
                del fresh[cid]
            if fresh:
                try:
                    places = self._appender.append(list(fresh.values()))
                    rows = [Row(place.location, place.size, cid) for cid, place in zip(fresh, places, strict=True)]
                    self.repaired(partial(self.index.insert, rows, durable=False))
                except BaseException:
                    self._appender.take_back()
                    raise
                self._appender.keep()
        return len(fresh)

    def delete(self, cid: Cid) -> int:
        """Forget a block; its length, or 0 if it was not here."""
        place = self.place_of(cid)
        if place is None:
            return 0
        self.repaired(partial(self.index.delete, [place.location]))
        self.packs.free(place.pack, [(place.offset - len(frame_head(cid, place.size)), place.offset + place.size)])
        return place.size

    def cids(self) -> Iterator[list[Cid]]:
        """Every block, each once, some at a time."""
        last = b""
        while found := self.repaired(partial(self.index.cids_after, last, _LISTED)):
            yield found
            last = found[-1]

    def stats(self) -> StoreStats:
        """Count everything: reads the whole index, 0.1 s for a million blocks."""
        blocks, size = self.repaired(self.index.totals)
        numbers = self.packs.numbers()
        return StoreStats(blocks, size, len(numbers), sum(self.packs.disk_usage(number)[1] for number in numbers))

    def open_disk(self) -> int:
        """A descriptor for ``sync``, which tells of the writes that failed since it was opened."""
        try:
            return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise storage_failed(error, self.path, "open the block store") from error

    def sync(self, disk: int) -> None:
        """Return when all that anybody wrote before is on the disk. It also waits for what other programs wrote to this file system."""
        try:
            sync_file_system(disk)
        except OSError as error:
            raise storage_failed(error, self.path, "write the blocks to the disk") from error

    def repaired(self, work: Callable[[], T]) -> T:
        """``work``, once more with a new index where the index turns out to be damaged. Not while the store's lock is held."""
        try:
            return work()
        except IndexDamaged as damage:
            self._rebuild(damage.inode, damage.why)
            return work()

    def _rebuild(self, inode: int, why: str) -> None:
        with locked(self.lock, exclusive=True, timeout=600):
            if self.index.inode() != inode:
                return  # another process did it meanwhile
            numbers = self.packs.numbers()
            count = 0

            def rows() -> Iterator[Row]:
                nonlocal count
                for number in numbers:
                    for row in self._scanned(number):
                        count += 1
                        yield row

            self.index.replace(rows())
            if numbers:
                _log.warning(
                    "%s: the index of the blocks %s; it was made again from %d packs: %d blocks", self.path, why, len(numbers), count
                )

    def _scanned(self, number: int) -> Iterator[Row]:
        path = self.packs.path(number)
        try:
            with path.open("rb") as file:
                for found in scan(file.fileno()):
                    yield Row(first_location(number) + found.offset, found.size, found.cid)
        except OSError as error:
            raise storage_failed(error, path, "read a pack") from error

    def _second_look(self, cid: Cid) -> bytes | None:
        """A block that did not match, looked up and read again with nobody else at it."""
        self.place_of(cid)  # repairs the index, which cannot be done with the lock
        with locked(self.lock, exclusive=True):
            place = self.index.find([cid]).get(cid)
            if place is None:
                return None
            data = self.packs.read(place.pack, place.offset, place.size)
            if _matches(cid, data):
                return data
            _log.error(
                "%s: the %d bytes from %d on are not the block %s (a torn write or a bad disk); it is removed",
                self.packs.path(place.pack), place.size, place.offset, format_cid(cid),
            )  # fmt: skip
            self.index.delete([place.location])
            return None

    def _end_of(self, pack: int) -> int:
        end = self.repaired(partial(self.index.end_of, pack))
        if end <= self.packs.disk_usage(pack)[0]:
            return end
        self._forget_behind_end(pack)  # before anybody appends there: what came to lie in their places would not be them
        return self.repaired(partial(self.index.end_of, pack))

    def _forget_behind_end(self, pack: int) -> None:
        """Remove the rows of blocks that lie behind the end of their pack."""
        with locked(self.lock, exclusive=True):
            length = self.packs.disk_usage(pack)[0]
            count = self.index.delete_behind(pack, length)
            if count:
                _log.error("%s ends at byte %d, before %d of its blocks; they are removed", self.packs.path(pack), length, count)

    def _check_version(self) -> None:
        path = self.path / "version"
        if not path.exists():
            path.write_text(_VERSION + "\n")
        elif (found := path.read_text().strip()) == "1":
            raise StorageFailed(
                f"{self.path}: this block store has format 1, one file for each block, which only versions before the first release had",
                hint=f"remove it (`rm -r {self.path}`) and push or pull again, or use another folder with IPFS_STORE_PATH",
            )
        elif found not in (_VERSION, ""):
            raise StorageFailed(
                f"{self.path}: this block store has format {found[:20]!r}; this program knows format {_VERSION}",
                hint="use the version of ipfs-store that made it, or another folder with IPFS_STORE_PATH",
            )


def _matches(cid: Cid, data: bytes | memoryview) -> bool:
    try:
        verify_block(cid, data)
    except BlockMismatch:
        return False
    return True


def _runs(ordered: Sequence[tuple[Place, Cid]]) -> Iterator[Sequence[tuple[Place, Cid]]]:
    """Neighbours together."""
    start = 0
    for at, (place, _) in enumerate(ordered):
        first, before = ordered[start][0], ordered[max(at - 1, start)][0]
        if at > start and (place.location - before.location - before.size > _GAP or place.location + place.size - first.location > _RUN):
            yield ordered[start:at]
            start = at
    if ordered:
        yield ordered[start:]
