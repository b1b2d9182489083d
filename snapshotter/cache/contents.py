"""Complete, verified files by content id: the first data-only layer of every native mount.

Files are read by the kernel without asking anybody, so these rules hold:

- **What has a name in ``data`` is complete and right.** It is written elsewhere, renamed in, and never changed, cut or punched after. The
  files belong to root, below a folder that only root can enter; an overlay takes owner and mode from the metadata.
- **After a power failure, too.** An fsync for each small file would cost more than fetching it. Instead a file's mtime is the *epoch* in
  which it was written, a number that `sync` raises when the file system has everything of the one before on the disk. If the machine was
  not shut down cleanly, files of an epoch that was not synced are hashed again before anything is mounted, or dropped (`unproven`).
- **Size is bounded**, see `snapshotter.cache.room`.

Synchronous and thread-safe: callers are worker threads.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ipfs_store.errors import StorageFailed
from snapshotter.cache.partial import Data, PartialFiles
from snapshotter.cache.room import Room, on_disk

_log = logging.getLogger(__name__)
_MODE = 0o444
Pieces = Sequence[Data]


class StoredFile(NamedTuple):
    """A content that is here."""

    path: str
    size: int
    """Bytes on disk."""
    put: float
    """When, in seconds since 1970."""
    epoch: int

    @property
    def content(self) -> bytes:
        """Its id."""
        return bytes.fromhex(self.path.rpartition("/")[2])


class ContentStore:
    """Contents in ``folder``, which is made; raises StorageFailed."""

    def __init__(self, folder: Path, room: Room | None = None) -> None:
        self.folder = folder
        self.data = folder / "data"
        """The data layer: ``aa/<64 digits>``."""
        self.room = room or Room()
        self._data = str(self.data)
        self._tmp = str(folder / "tmp")
        self._serial = itertools.count()
        self._lock = threading.Lock()
        self._written = False
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            Path(self._tmp).mkdir(exist_ok=True)
            for number in range(256):
                (self.data / f"{number:02x}").mkdir(parents=True, exist_ok=True)
            self.partial = PartialFiles(folder / "partial", self.room, self._finish)
            boot, synced = self._marker()
        except OSError as error:
            raise StorageFailed(f"the cache in {folder} cannot be used: {error}") from error
        self.fresh: list[bytes] | None = None
        """Contents that were put since somebody took the list; None: nobody does."""
        self.sound = boot == _boot_id()
        """Whether nothing can have been lost since the marker was written."""
        self._synced = synced
        self._epoch = synced + 1

    def has(self, content: bytes) -> bool:
        """Whether the content is here."""
        return os.path.exists(self.path(content))  # noqa: PTH110 - a string, once for every lookup

    def put(self, content: bytes, pieces: Pieces) -> None:
        """Keep a content whose bytes the caller has verified; raises StorageFailed."""
        self.put_many([(content, pieces)])

    def put_many(self, contents: Iterable[tuple[bytes, Pieces]]) -> None:
        """Keep several, each at once; raises StorageFailed at the first that cannot be kept."""
        for content, pieces in contents:
            path = self.path(content)
            if os.path.exists(path):  # noqa: PTH110
                continue
            size = sum(map(len, pieces))
            self.room.take(size)
            tmp = f"{self._tmp}/{os.getpid()}.{next(self._serial)}"
            try:
                self._write(tmp, path, pieces)
            except OSError as error:
                self.room.give_back(size)
                Path(tmp).unlink(missing_ok=True)
                raise StorageFailed(f"the cache in {self.data} takes nothing more: {error.strerror}") from error
            if self.fresh is not None:
                self.fresh.append(content)

    def read_chunk(self, content: bytes, chunks: int, number: int, offset: int, size: int, digest: bytes) -> bytes | None:
        """A chunk of a content, complete or partial, hashed; None if it is not here. Raises nothing: a disk that cannot be read has no chunk."""
        try:
            file = os.open(self.path(content), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return self._read_partial(content, chunks, number, offset, size, digest)
        except OSError as error:
            _log.warning("%s cannot be read (%s); it is fetched again", self.path(content), error.strerror)
            return None
        try:
            data = os.pread(file, size, offset)
        except OSError as error:  # with fs-verity: a bit has flipped
            _log.warning("%s cannot be read (%s); it is fetched again", self.path(content), error.strerror)
            self.drop(content)
            return None
        finally:
            os.close(file)
        if hashlib.sha256(data).digest() == digest:
            return data
        _log.warning("%s was damaged; dropped, it is fetched again", self.path(content))
        self.drop(content)
        return None

    def _read_partial(self, content: bytes, chunks: int, number: int, offset: int, size: int, digest: bytes) -> bytes | None:
        try:
            return self.partial.read(content, chunks, number, offset, size, digest)
        except OSError as error:
            _log.warning("the cache in %s takes nothing more: %s", self.folder, error.strerror)
            return None

    def write_chunks(self, content: bytes, total: int, chunks: int, pieces: Sequence[tuple[int, int, Data]]) -> None:
        """Keep verified chunks, each (number, offset, bytes), of a file of ``total`` bytes and ``chunks`` chunks; the last one completes it.

        Raises StorageFailed.
        """
        try:
            self.partial.write(content, total, chunks, pieces)
        except OSError as error:
            raise StorageFailed(f"the cache in {self.folder} takes nothing more: {error.strerror}") from error

    def _finish(self, content: bytes, file: int) -> None:
        """Give the open file, which is complete, the content's name: this very file, whatever has its old name by now."""
        self._stamp(file)
        try:
            # Python follows /proc's link only if it is given a folder, which an absolute path makes no use of.
            os.link(f"/proc/self/fd/{file}", self.path(content), src_dir_fd=file, follow_symlinks=True)
        except FileExistsError:  # it came another way meanwhile
            self.room.give_back(os.fstat(file).st_size)
        if self.fresh is not None:
            self.fresh.append(content)

    def drop(self, content: bytes) -> None:
        """Take a content out: no new mount finds it, and it is fetched again. Whoever has it open keeps it."""
        self.room.unlink(self.path(content))

    def files(self) -> list[StoredFile]:
        """Every content that is here, complete, by id."""
        found = []
        for number in range(256):
            with os.scandir(f"{self._data}/{number:02x}") as entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    found.append(StoredFile(entry.path, on_disk(status.st_size), status.st_ctime, int(status.st_mtime)))
        return found

    def with_inode(self, inode: int) -> list[str]:
        """Paths of the contents whose file has that inode; one at most."""
        found = []
        for number in range(256):
            with os.scandir(f"{self._data}/{number:02x}") as entries:
                found += [entry.path for entry in entries if entry.inode() == inode]
        return found

    # What is on the disk for certain.

    def sync(self) -> None:
        """Have all that was written so far on the disk, and say so in the marker; nothing to do if nothing was written. Raises StorageFailed."""
        with self._lock:
            if not self._written and self.sound:
                return
            epoch, self._epoch, self._written = self._epoch, self._epoch + 1, False
        try:
            _syncfs(self.folder)
            self._mark(epoch)
        except OSError as error:
            raise StorageFailed(f"the cache in {self.folder} cannot be synced: {error.strerror}") from error
        self._synced, self.sound = epoch, True

    def unproven(self, check: Callable[[bytes, Path], bool]) -> tuple[int, int]:
        """After a boot: hand each content that may not have reached the disk to ``check``, which says whether it is whole, and drop those
        that are not; (checked, dropped). To be called before anything is mounted. Raises StorageFailed."""
        if self.sound:
            return 0, 0
        checked = dropped = 0
        for path, _, _, epoch in self.files():
            if 0 < epoch <= self._synced:
                continue
            checked += 1
            if not check(bytes.fromhex(os.path.basename(path)), Path(path)):  # noqa: PTH119
                Path(path).unlink()
                dropped += 1
            else:
                os.utime(path, (0, self._epoch))
        self.partial.clear()
        for name in os.listdir(self._tmp):  # noqa: PTH208
            Path(self._tmp, name).unlink()
        self._written = True
        self.sync()
        return checked, dropped

    def count(self) -> None:
        """Clear away what killed processes left half-written, and count the rest."""
        for name in os.listdir(self._tmp):  # noqa: PTH208
            owner = name.partition(".")[0]
            if owner != str(os.getpid()) and not (owner.isdigit() and Path("/proc", owner).exists()):
                Path(self._tmp, name).unlink(missing_ok=True)
        self.room.counted(sum(file.size for file in self.files()) + self.partial.bytes_on_disk())

    def path(self, content: bytes) -> str:
        """Where the content is, if it is here."""
        name = content.hex()
        return f"{self._data}/{name[:2]}/{name}"

    def _write(self, tmp: str, path: str, pieces: Pieces) -> None:
        file = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        try:
            for piece in pieces:
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(file, rest) :]
            self._stamp(file)
        finally:
            os.close(file)
        os.rename(tmp, path)  # noqa: PTH104

    def _stamp(self, file: int | str) -> None:
        with self._lock:
            self._written = True
            epoch = self._epoch
        os.utime(file, (0, epoch))

    def _marker(self) -> tuple[str, int]:
        """(boot, epoch): what was on the disk when the marker was written, and in which boot that was."""
        try:
            boot, epoch = (self.folder / "synced").read_text().split()
            return boot, int(epoch)
        except (FileNotFoundError, ValueError):
            return "", 0

    def _mark(self, epoch: int) -> None:
        part = self.folder / "synced.part"
        with part.open("w") as file:
            file.write(f"{_boot_id()} {epoch}\n")
            file.flush()
            os.fsync(file.fileno())
        part.rename(self.folder / "synced")


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _syncfs(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(handle)
