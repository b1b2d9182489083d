"""Verified chunks on disk, each a file named by the SHA-256 of its contents (and of a scope, if there is one).

Rules that hold here:

- **No wrong byte leaves.** Every chunk is hashed again whenever it is read from the disk. That costs 0.15 ms for 256 KiB, which the
  kernel's page cache spares every later reader, and buys more than it costs: no fsync when writing, no list of what is known to be good,
  nothing to repair after a power failure; a flipped bit, a cut file or a stranger's hand in the folder is found by the read that meets it.
  Such a file is deleted, and counts as absent.
- **No half file has a name.** Written under ``tmp/``, then renamed.
- **A disk that cannot take more is no error.** What cannot be kept is not kept; the log says so once.
- **Size is bounded**, together with whole contents: see `snapshotter.cache.room`. A file's mtime says when it was used last, to within
  TOUCH_AFTER.

Synchronous and thread-safe: callers are worker threads, and several processes may share a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import time
from pathlib import Path

from ipfs_store.errors import StorageFailed
from snapshotter.cache.room import Room, on_disk

_log = logging.getLogger(__name__)

# Eviction goes by hours and days; noting every use would write an inode for every read.
TOUCH_AFTER = 600.0


class ChunkCache:
    """Chunks in ``folder``. ``scope``: chunks that were put with one are found with the same one alone."""

    def __init__(self, folder: Path, room: Room | None = None) -> None:
        self.folder = folder
        self.room = room or Room()
        self._chunks = str(folder / "chunks")
        self._tmp = str(folder / "tmp")
        self._serial = itertools.count()
        for path in (self._chunks, self._tmp):
            with contextlib.suppress(OSError):  # a disk that cannot be written is met, and reported, by the first put
                Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)

    def get(self, digest: bytes, size: int, scope: bytes = b"") -> bytes | None:
        """The chunk with this SHA-256 and size, or None if it is not here. Raises nothing: a disk that cannot be read has no chunk."""
        path = self._path(digest, scope)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            status = os.fstat(file)
            if status.st_size != size:
                # Either the file was cut, or somebody's TOC gives a size that the digest does not have. Only the hash can tell.
                self._drop_if_wrong(file, path, digest)
                return None
            data = _read_all(file, size)
            if hashlib.sha256(data).digest() != digest:
                self._drop(path, digest)
                return None
            if time.time() - status.st_mtime > TOUCH_AFTER:
                os.utime(file)
            return data
        except OSError as error:
            _log.warning("cached chunk %s cannot be read (%s); it is fetched again", path, error.strerror)
            return None
        finally:
            os.close(file)

    def put(self, digest: bytes, data: bytes | bytearray, scope: bytes = b"") -> None:
        """Keep ``data``, whose SHA-256 the caller has found to be ``digest``. Raises nothing: what cannot be kept is not kept."""
        path = self._path(digest, scope)
        if os.path.exists(path):  # noqa: PTH110 - a string, once for every chunk
            return
        try:
            self.room.take(len(data))
        except StorageFailed as error:
            self.room.say_once(error.message)
            return
        tmp = f"{self._tmp}/{os.getpid()}.{next(self._serial)}"
        try:
            self._write(tmp, path, data)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(tmp)  # noqa: PTH108 - a string
            self.room.give_back(len(data))
            self.room.say_once(f"the cache in {self.folder} takes nothing more ({error.strerror})")

    def has(self, digest: bytes, scope: bytes = b"") -> bool:
        """Whether a chunk is here, not looked at."""
        return os.path.exists(self._path(digest, scope))  # noqa: PTH110 - a string

    def count(self) -> None:
        """Count what is there, and clear away what a killed process left half-written."""
        for name in _listed(self._tmp):
            owner = name.partition(".")[0]
            if owner == str(os.getpid()) or (owner.isdigit() and Path("/proc", owner).exists()):
                continue
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._tmp}/{name}")  # noqa: PTH108
        # What was put during the count may be counted twice: it is bounded by what a start-up reads, and the next count is exact.
        self.room.counted(sum(size for _, size, _ in self.files()))

    def files(self) -> list[tuple[float, int, str]]:
        """(when used last in seconds, bytes on disk, path) of every chunk. A file is called by `chunk_name`."""
        found = []
        for folder in _listed(self._chunks):
            try:
                with os.scandir(f"{self._chunks}/{folder}") as entries:
                    for entry in entries:
                        with contextlib.suppress(FileNotFoundError):
                            status = entry.stat(follow_symlinks=False)
                            found.append((status.st_mtime, on_disk(status.st_size), entry.path))
            except (FileNotFoundError, NotADirectoryError):
                continue
        return found

    def _write(self, tmp: str, path: str, data: bytes | bytearray) -> None:
        try:
            file = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # somebody emptied the folder by hand
            os.makedirs(self._tmp, mode=0o700, exist_ok=True)  # noqa: PTH103
            file = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(file, rest) :]
        finally:
            os.close(file)
        try:
            os.rename(tmp, path)  # noqa: PTH104
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120
            os.rename(tmp, path)  # noqa: PTH104

    def _drop_if_wrong(self, file: int, path: str, digest: bytes) -> None:
        hasher = hashlib.sha256()
        while piece := os.read(file, 1 << 20):
            hasher.update(piece)
        if hasher.digest() != digest:
            self._drop(path, digest)

    def _drop(self, path: str, digest: bytes) -> None:
        _log.warning("the cached chunk sha256:%s was damaged (%s); dropped, it is fetched again", digest.hex(), path)
        self.room.unlink(path)

    def _path(self, digest: bytes, scope: bytes) -> str:
        name = chunk_name(digest, scope).hex()
        return f"{self._chunks}/{name[:2]}/{name}"


def chunk_name(digest: bytes, scope: bytes) -> bytes:
    """What the file of a chunk is called by: its digest; in a scope, something that nobody outside can name."""
    return hashlib.sha256(scope + digest).digest() if scope else digest


def _read_all(file: int, size: int) -> bytes:
    data = os.read(file, size)
    if len(data) == size:
        return data
    pieces = [data]
    while pieces[-1]:  # a read of over 2 GiB, or one that a signal cut short
        pieces.append(os.read(file, size))
    return b"".join(pieces)


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208
    except FileNotFoundError:
        return []
