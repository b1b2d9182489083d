"""Large files of which some chunks are here: sparse files by content id.

Which chunks were written by this process is known in memory; what is there from before is found by whoever reads it, hashes it, and says so
(`read`). So nothing has to be written in order, and nothing is believed after a restart. A file may be evicted at any moment, and be begun
anew while somebody still writes into the old one: what is known is forgotten where a file is made, and who has another one open adds nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from snapshotter.cache.room import Room

Data = bytes | bytearray | memoryview
_BLOCK = 512  # of st_blocks


class PartialFiles:
    """In ``folder``, which is made; raises OSError. ``finish`` gets a content whose chunks are all there, and its open file."""

    def __init__(self, folder: Path, room: Room, finish: Callable[[bytes, int], None]) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = str(folder)
        self._room = room
        self._finish = finish
        self._lock = threading.Lock()
        self._have: dict[bytes, set[int]] = {}
        """Of each content: the chunks that are there."""
        self._begun: set[bytes] = set()
        """Contents whose files this process made, with nothing in them that it does not know of."""

    def write(self, content: bytes, total: int, chunks: int, pieces: Sequence[tuple[int, int, Data]]) -> None:
        """Keep verified chunks, each (number, offset, bytes). Raises OSError, StorageFailed."""
        size = sum(len(data) for _, _, data in pieces)
        self._room.take(size)
        try:
            file = self._open(content, total)
            try:
                for _, offset, data in pieces:
                    at, rest = offset, memoryview(data)
                    while rest:
                        written = os.pwrite(file, rest, at)
                        at, rest = at + written, rest[written:]
                self._found(content, chunks, [number for number, _, _ in pieces], file)
            finally:
                os.close(file)
        except OSError:
            self._room.give_back(size)
            raise

    def misses(self, content: bytes, numbers: Iterable[int]) -> bool:
        """Whether none of the chunks is here for certain: the file is this process's own."""
        with self._lock:
            return content in self._begun and self._have.get(content, frozenset()).isdisjoint(numbers)

    def read(self, content: bytes, chunks: int, number: int, offset: int, size: int, digest: bytes) -> bytes | None:
        """The chunk, hashed; None if it is not there. Raises OSError where a file that is complete by that cannot be kept."""
        try:
            file = os.open(self._path(content), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            try:
                if os.lseek(file, offset, os.SEEK_DATA) >= offset + size:
                    return None
            except OSError:  # ENXIO: nothing but holes from here on
                return None
            data = os.pread(file, size, offset)
            if hashlib.sha256(data).digest() != digest:
                return None
            self._found(content, chunks, [number], file)
            return data
        finally:
            os.close(file)

    def _found(self, content: bytes, chunks: int, numbers: Iterable[int], file: int) -> None:
        """Chunks are in that file and right. Until the file is closed, no other gets its inode's number."""
        with self._lock:
            try:
                same = os.path.samestat(os.stat(self._path(content)), os.fstat(file))  # noqa: PTH116
            except FileNotFoundError:
                same = False
            if not same:
                return
            have = self._have.setdefault(content, set())
            before = len(have)
            have.update(numbers)
            complete = before < chunks == len(have)
            if complete:
                del self._have[content]
                self._begun.discard(content)
        if complete:
            self._finish(content, file)
            Path(self._path(content)).unlink(missing_ok=True)

    def _open(self, content: bytes, total: int) -> int:
        path = self._path(content)
        try:
            return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            pass
        with self._lock:
            try:
                file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
            except FileExistsError:
                return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            self._have[content] = set()
            self._begun.add(content)
        os.ftruncate(file, total)
        return file

    def _path(self, content: bytes) -> str:
        return f"{self._folder}/{content.hex()}"

    def files(self) -> list[tuple[float, int, str]]:
        """(when written last in seconds, bytes on disk, path) of every file; those that are gone by now are left out."""
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    found.append((status.st_mtime, status.st_blocks * _BLOCK, entry.path))
        return found

    def bytes_on_disk(self) -> int:
        """All of them together."""
        return sum(size for _, size, _ in self.files())

    def clear(self) -> None:
        """Delete all: after a power failure it is not worth finding out what they hold."""
        for name in os.listdir(self._folder):  # noqa: PTH208
            Path(self._folder, name).unlink()
