"""Verified chunks on disk, each a file named by the SHA-256 of its contents.

Rules that hold here:

- **No wrong byte leaves.** Every chunk is hashed again whenever it is read from the disk. That costs 0.15 ms for 256 KiB, which the
  kernel's page cache spares every later reader, and buys more than it costs: no fsync when writing, no list of what is known to be good,
  nothing to repair after a power failure; a flipped bit, a cut file or a stranger's hand in the folder is found by the read that meets it.
  Such a file is deleted, and counts as absent.
- **No half file has a name.** Written under ``tmp/``, then renamed.
- **A disk that cannot take more is no error.** What cannot be kept is not kept; one warning says so, one line says when it works again.
- **Size is bounded** by ``max_bytes``: over it, the least recently used go until nine tenths are left, so that the folder is listed seldom.
  A file's mtime says when it was used last, to within TOUCH_AFTER; a count in memory says how full it is, made from the folder at start.

Synchronous and thread-safe: callers are worker threads, and several processes may share a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import threading
import time
from pathlib import Path

_log = logging.getLogger(__name__)

# Eviction goes by hours and days; noting every use would write an inode for every read.
TOUCH_AFTER = 600.0
_KEEP = 0.9
_PAGE = 4096


class ChunkCache:
    """Chunks in ``folder``, at most about ``max_bytes`` of them (files are counted in whole pages of 4 KiB)."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._chunks = str(folder / "chunks")
        self._tmp = str(folder / "tmp")
        self._serial = itertools.count()
        self._lock = threading.Lock()  # guards the counters and, by its own lock, eviction
        self._evicting = threading.Lock()
        self._bytes = 0
        self._counted = False
        self._failing = False
        for path in (self._chunks, self._tmp):
            with contextlib.suppress(OSError):  # a disk that cannot be written is met, and reported, by the first put
                Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def used(self) -> int:
        """Bytes on disk, as far as counted."""
        return self._bytes

    def get(self, digest: bytes, size: int) -> bytes | None:
        """The chunk with this SHA-256 and size, or None if it is not here. Raises nothing: a disk that cannot be read has no chunk."""
        path = self._path(digest)
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
                self._drop(path, size, digest)
                return None
            if time.time() - status.st_mtime > TOUCH_AFTER:
                os.utime(file)
            return data
        except OSError as error:
            _log.warning("cached chunk %s cannot be read (%s); it is fetched again", path, error.strerror)
            return None
        finally:
            os.close(file)

    def put(self, digest: bytes, data: bytes) -> None:
        """Keep ``data``, whose SHA-256 the caller has found to be ``digest``. Raises nothing: what cannot be kept is not kept."""
        path = self._path(digest)
        if os.path.exists(path):  # noqa: PTH110 - a string, once for every chunk
            return
        tmp = f"{self._tmp}/{os.getpid()}.{next(self._serial)}"
        try:
            self._write(tmp, path, data)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(tmp)  # noqa: PTH108 - a string
            if not self._failing:
                self._failing = True
                _log.warning("the cache in %s takes nothing more (%s); reads go on without it", self.folder, error.strerror)
            return
        if self._failing:
            self._failing = False
            _log.info("the cache in %s takes chunks again", self.folder)
        with self._lock:
            self._bytes += _on_disk(len(data))
        if self._counted and self._bytes > self.max_bytes:
            self._evict()

    def has(self, digest: bytes) -> bool:
        """Whether a chunk is here, not looked at."""
        return os.path.exists(self._path(digest))  # noqa: PTH110 - a string

    def count(self) -> None:
        """Count what is there, and clear away what a killed process left half-written. Nothing is evicted before this was done once."""
        for name in _listed(self._tmp):
            owner = name.partition(".")[0]
            if owner == str(os.getpid()) or (owner.isdigit() and Path("/proc", owner).exists()):
                continue
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._tmp}/{name}")  # noqa: PTH108
        total = sum(_on_disk(size) for _, size, _ in self._files())
        with self._lock:
            # What was put during the count may be counted twice: it is bounded by what a start-up reads, and the next count is exact.
            self._bytes += total
            self._counted = True
        if self._bytes > self.max_bytes:
            self._evict()

    def _write(self, tmp: str, path: str, data: bytes) -> None:
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
        size = 0
        while piece := os.read(file, 1 << 20):
            hasher.update(piece)
            size += len(piece)
        if hasher.digest() != digest:
            self._drop(path, size, digest)

    def _drop(self, path: str, size: int, digest: bytes) -> None:
        _log.warning("the cached chunk sha256:%s was damaged (%d bytes in %s); dropped, it is fetched again", digest.hex(), size, path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108
            with self._lock:
                self._bytes -= _on_disk(size)

    def _evict(self) -> None:
        if not self._evicting.acquire(blocking=False):
            return
        try:
            files = sorted(self._files())
            total = sum(_on_disk(size) for _, size, _ in files)
            freed = 0
            for _, size, path in files:
                if total - freed <= self.max_bytes * _KEEP:
                    break
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)  # noqa: PTH108
                freed += _on_disk(size)
            with self._lock:
                self._bytes = total - freed
            _log.info("the cache in %s reached %d bytes; %d bytes freed", self.folder, total, freed)
        except OSError as error:
            _log.warning("the cache in %s could not be made smaller: %s", self.folder, error)
        finally:
            self._evicting.release()

    def _files(self) -> list[tuple[float, int, str]]:
        """(last used, size in bytes, path) of every chunk."""
        found = []
        for folder in _listed(self._chunks):
            try:
                with os.scandir(f"{self._chunks}/{folder}") as entries:
                    for entry in entries:
                        with contextlib.suppress(FileNotFoundError):
                            status = entry.stat(follow_symlinks=False)
                            found.append((status.st_mtime, status.st_size, entry.path))
            except (FileNotFoundError, NotADirectoryError):
                continue
        return found

    def _path(self, digest: bytes) -> str:
        name = digest.hex()
        return f"{self._chunks}/{name[:2]}/{name}"


def _read_all(file: int, size: int) -> bytes:
    data = os.read(file, size)
    if len(data) == size:
        return data
    pieces = [data]
    while pieces[-1]:  # a read of over 2 GiB, or one that a signal cut short
        pieces.append(os.read(file, size))
    return b"".join(pieces)


def _on_disk(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208
    except FileNotFoundError:
        return []
