"""Packs: files of blocks, one behind the other, that grow at their end alone.

A pack is a CARv1 (its root is an empty identity CID, since it has none), so that what is in it can be found without the index, by us
(``scan``) and by other tools. Where a block lies is one number, its *location*: the pack's number and the offset of the block's bytes.

Who appends to a pack holds its lock (flock) until it is done, or dead. What no row of the index covers is worth nothing: behind the last row
that is the unfinished work of the pack's owner, or of one who was killed, and before it, of an owner's blocks that came to nothing, or that were deleted.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ipfs_store.cids import RAW, Cid
from ipfs_store.dag import varint
from ipfs_store.dag.car import car_header
from ipfs_store.errors import StorageFailed
from ipfs_store.nodes.disk import punch, start_writing
from ipfs_store.nodes.interface import Block
from ipfs_store.nodes.locks import storage_failed, try_lock

_log = logging.getLogger(__name__)

PACK_BYTES = 512 << 20
"""A pack that is this long is not appended to any more."""
MAX_READ = 8 << 20
"""More is not read at once, whatever an index that was damaged says."""
HEADER = car_header([Cid(bytes((1, RAW, 0, 0)))])
_OFFSET_BITS = 40
_NAME = re.compile(r"(\d{8})\.car")
_FLUSH = 48 << 20
_BUFFERS = 1000  # for one pwritev; the kernel takes 1,024
_TRIES = 8  # packs that are looked at for room before a new one is made


class Place(NamedTuple):
    """Where a block is."""

    location: int
    size: int

    @property
    def pack(self) -> int:
        """The pack's number."""
        return self.location >> _OFFSET_BITS

    @property
    def offset(self) -> int:
        """Of the block's bytes in the pack."""
        return self.location & ((1 << _OFFSET_BITS) - 1)


class Packs:
    """The folder of packs. Any thread, any number of processes."""

    def __init__(self, folder: Path, end_of: Callable[[int], int]) -> None:
        """``end_of`` says where the last block that the index knows in a pack ends, 0 if it knows none."""
        self.folder = folder
        self._name = str(folder)  # for what is done for every block: a Path is twice as slow
        self._end_of = end_of

    def path(self, number: int) -> Path:
        """A pack's file."""
        return self.folder / f"{number:08}.car"

    def numbers(self) -> list[int]:
        """The packs that there are, in order; raises StorageFailed."""
        try:
            return sorted(int(found[1]) for name in os.listdir(self.folder) if (found := _NAME.fullmatch(name)))  # noqa: PTH208
        except OSError as error:
            raise storage_failed(error, self.folder, "list the packs") from error

    def read(self, number: int, offset: int, length: int) -> bytes:
        """Bytes of a pack, fewer where it ends or is gone, and never to be believed before they are hashed; raises StorageFailed.

        Opened for each read, 5 µs: nobody who frees a pack has to wait for it to be closed.
        """
        path = f"{self._name}/{number:08}.car"
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.pread(handle, min(length, MAX_READ), offset)
            finally:
                os.close(handle)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise storage_failed(error, path, "read a block") from error

    def sync(self, numbers: Iterable[int]) -> None:
        """Return when all that was appended to these packs, by whomever, is on the disk; raises StorageFailed."""
        for number in numbers:
            try:
                handle = os.open(self.path(number), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fdatasync(handle)
                finally:
                    os.close(handle)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise storage_failed(error, self.path(number), "write the blocks to the disk") from error

    def take(self) -> Pack:
        """A pack with room, that is the caller's until it is closed; raises StorageFailed."""
        numbers = self.numbers()
        for number in numbers[: -_TRIES - 1 : -1]:
            pack = self._own(number)
            if pack is not None:
                return pack
        number = max(numbers, default=0)
        while True:
            number += 1
            path = self.path(number)
            try:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            except FileExistsError:
                continue
            except OSError as error:
                raise storage_failed(error, path, "make a pack") from error
            pack = self._own(number)  # somebody who collects, or looks for a pack as we do, may be quicker
            if pack is not None:
                return pack

    @contextmanager
    def locked(self, number: int) -> Iterator[int]:
        """A descriptor of the pack, locked; -1 where it is gone or has an owner. Raises StorageFailed."""
        try:
            handle = os.open(self.path(number), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            yield -1
            return
        except OSError as error:
            raise storage_failed(error, self.path(number), "open a pack") from error
        try:
            # Whoever had it before us may have removed it: a file without a name is nobody's.
            yield handle if try_lock(handle, exclusive=True) and os.fstat(handle).st_nlink else -1
        except OSError as error:
            raise storage_failed(error, self.path(number), "look after a pack") from error
        finally:
            os.close(handle)

    def trim(self, number: int) -> bool:
        """Free what an owner who is gone left behind the last block, and the pack if that is all; whether the pack is still there."""
        with self.locked(number) as handle:
            if handle < 0:
                return self.path(number).exists()
            if self._end_of(number):
                self._cut(handle, number)
                return True
            os.ftruncate(handle, 0)  # somebody may be reading it, and its bytes are wanted now
            os.unlink(self.path(number))  # noqa: PTH108
            return False

    def free(self, number: int, ranges: Iterable[tuple[int, int]]) -> bool:
        """Give ranges of a pack back to the file system; False where it does not know how. Raises StorageFailed."""
        try:
            handle = os.open(self.path(number), os.O_RDWR | os.O_CLOEXEC)
            try:
                return all(punch(handle, start, end) for start, end in ranges)
            finally:
                os.close(handle)
        except FileNotFoundError:
            return True
        except OSError as error:
            raise storage_failed(error, self.path(number), "free deleted blocks") from error

    def disk_usage(self, number: int) -> tuple[int, int]:
        """A pack's length, and the bytes that it takes on the disk; raises StorageFailed."""
        try:
            status = os.stat(f"{self._name}/{number:08}.car")  # noqa: PTH116
        except FileNotFoundError:
            return 0, 0
        except OSError as error:
            raise storage_failed(error, self.path(number), "look at a pack") from error
        return status.st_size, status.st_blocks * 512

    def _own(self, number: int) -> Pack | None:
        """The pack, if it has room and no owner."""
        with self.locked(number) as handle:
            if handle < 0 or (length := os.fstat(handle).st_size) >= PACK_BYTES:
                return None
            end = self._cut(handle, number)
            if length < len(HEADER):
                os.pwrite(handle, HEADER, 0)
            return Pack(self.path(number), number, os.dup(handle), end)

    def _cut(self, handle: int, number: int) -> int:
        """Where an owner may append, with what nobody knows behind it cut off."""
        end = max(self._end_of(number), len(HEADER))
        if os.fstat(handle).st_size > end:
            os.ftruncate(handle, end)
        return end


class Pack:
    """A pack that is ours to append to. One thread at a time, but for ``start_writing``."""

    def __init__(self, path: Path, number: int, handle: int, end: int) -> None:
        """Use ``Packs.take``."""
        self.path = path
        self.number = number
        self.end = end
        self._handle = handle
        self._kept = self._started = self._flushed = end
        self._flushing: threading.Thread | None = None
        self._named = False

    def append(self, blocks: Sequence[Block]) -> list[Place]:
        """Append blocks; raises StorageFailed, and then the pack is as it was."""
        parts: list[bytes] = []
        places: list[Place] = []
        end = self.end
        for cid, data in ((block.cid, block.data) for block in blocks):
            head = frame_head(cid, len(data))
            parts += (head, data)
            places.append(Place(self.number << _OFFSET_BITS | end + len(head), len(data)))
            end += len(head) + len(data)
        try:
            at = self.end
            for first in range(0, len(parts), _BUFFERS):
                at = _write(self._handle, parts[first : first + _BUFFERS], at)
        except OSError as error:
            self._cut(self.end)
            raise storage_failed(error, self.path, f"write {len(blocks)} blocks") from error
        self.end = end
        return places

    def take_back(self) -> None:
        """Undo what was appended since ``keep``; raises StorageFailed."""
        self._cut(self._kept)

    def start_writing(self) -> None:
        """Have the disk write what was appended, without waiting for it; and, beside us, make it safe every 48 MB.

        Having it written is not enough: what a disk has in its own memory it writes when it is told to, and a push of 300 MB then waited 0.3 s
        at its end.
        """
        start, self._started = self._started, self.end
        start_writing(self._handle, start, self._started - start)
        if self.end - self._flushed >= _FLUSH and (self._flushing is None or not self._flushing.is_alive()):
            self._flushed = self.end
            self._flushing = threading.Thread(target=self._flush, name="flush")
            self._flushing.start()

    def sync(self) -> None:
        """Return when all that was appended is on the disk; raises StorageFailed, also for a write that failed since we have it."""
        self._join()
        try:
            os.fdatasync(self._handle)
            if not self._named:  # whoever made it may not have waited for its name to be on the disk
                folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
                self._named = True
        except OSError as error:
            raise storage_failed(error, self.path, "write the blocks to the disk") from error

    def keep(self) -> None:
        """What was appended so far has rows in the index: it stays when the pack is closed."""
        self._kept = self.end

    def close(self) -> None:
        """Let somebody else have it; what was not kept is gone."""
        self._join()
        try:
            if self._kept < self.end:
                self._cut(self._kept)
            if self._kept <= len(HEADER):
                self.path.unlink()
        except (OSError, StorageFailed) as error:
            _log.warning("%s: what is unfinished stays until the next collection: %s", self.path, error)
        finally:
            os.close(self._handle)

    def _flush(self) -> None:
        # By a descriptor of its own, so that the kernel tells of a failed write once more to ``sync``, which is who must know.
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            _log.warning("%s: %s; whoever waits for these blocks is told", self.path, error.strerror)

    def _join(self) -> None:
        if self._flushing is not None:
            self._flushing.join()
            self._flushing = None

    def _cut(self, end: int) -> None:
        try:
            os.ftruncate(self._handle, end)
        except OSError as error:
            raise storage_failed(error, self.path, "take back unfinished blocks") from error
        self.end = end
        self._started, self._flushed = min(self._started, end), min(self._flushed, end)


class Appender:
    """Where one push or process appends: a pack of its own, then the next. Not for several threads at a time, but for ``start_writing``."""

    def __init__(self, packs: Packs) -> None:
        """Takes no pack before there is something to write."""
        self._packs = packs
        self._open: list[Pack] = []

    def append(self, blocks: Sequence[Block]) -> list[Place]:
        """Append blocks, a few megabytes at most; raises StorageFailed, and then none of them is there."""
        if not self._open or self._open[-1].end >= PACK_BYTES:
            self._open.append(self._packs.take())
        return self._open[-1].append(blocks)

    def start_writing(self) -> None:
        """See ``Pack.start_writing``."""
        for pack in self._open[-1:]:
            pack.start_writing()

    def sync(self) -> None:
        """See ``Pack.sync``."""
        for pack in self._open:
            pack.sync()

    def take_back(self) -> None:
        """Undo what was appended since ``keep``; raises StorageFailed."""
        for pack in self._open:
            pack.take_back()

    def keep(self) -> None:
        """See ``Pack.keep``; packs that are full are closed."""
        for pack in self._open:
            pack.keep()
        while len(self._open) > 1:
            self._open.pop(0).close()

    def close(self) -> None:
        """See ``Pack.close``."""
        while self._open:
            self._open.pop().close()


def first_location(pack: int) -> int:
    """The least location in a pack."""
    return pack << _OFFSET_BITS


def frame_head(cid: Cid, size: int) -> bytes:
    """What stands in front of a block of ``size`` bytes."""
    return varint.encode(len(cid) + size) + cid


def _write(handle: int, parts: list[bytes], offset: int) -> int:
    """Write all of ``parts`` at ``offset``; where they end."""
    end = offset + sum(map(len, parts))
    offset += os.pwritev(handle, parts, offset)
    while offset < end:  # a disk that becomes full takes a part, and says so at the next
        rest = memoryview(b"".join(parts))[offset - end :]
        offset += os.pwrite(handle, rest, offset)
    return end
