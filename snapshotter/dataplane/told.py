"""How often a thread has asked for a content since it was told to look for it in the store, in a file that the data plane after this one maps as well.

The kernel asks four times for one opening of a file before ESTALE is the program's, and data planes may be killed between any two of them.
Shared memory outlives a process that is killed.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

from ipfs_store.errors import StorageFailed
from snapshotter.metadata import ContentId

_AGAIN = 20.0
"""Seconds after which a lookup is not the same opening any more. A thread that gets no processor may take a while to walk the path again."""
_SLOTS = 1 << 14
_NEAR = 8
"""Slots in which an entry may be: the one that its key gives, and those behind it."""
_ENTRY = struct.Struct("=dQII")
"""Until when it counts, the content's id as far as it fits, thread, times. It begins with what is written last."""


class Told:
    """The table at ``path``, made if it is not there; without a path, of this process alone. Raises StorageFailed."""

    def __init__(self, path: Path | None = None) -> None:
        size = _SLOTS * _ENTRY.size
        if path is None:
            self._table = mmap.mmap(-1, size)
            return
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(descriptor, size)
                self._table = mmap.mmap(descriptor, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StorageFailed(f"{path} cannot be made or mapped: {error.strerror}", hint="is the disk full?") from error

    def times(self, thread: int, content: ContentId) -> int:
        """Which time the thread asks, counted from the one that was told; 1 where none was."""
        now, name = time.monotonic(), _name(content)
        for at in _places(thread, name):
            until, *key, times = _ENTRY.unpack_from(self._table, at)
            if key == [name, thread] and now < until <= now + _AGAIN:  # a file that outlived a reboot says nothing
                self._write(at, until, name, thread, times + 1)
                return int(times) + 1
        return 1

    def tell(self, thread: int, content: ContentId) -> None:
        """The thread is about to hear, for the first time, that the content is in the store."""
        name = _name(content)
        oldest = min(_places(thread, name), key=lambda at: float(_ENTRY.unpack_from(self._table, at)[0]))
        self._write(oldest, time.monotonic() + _AGAIN, name, thread, 1)

    def _write(self, at: int, until: float, name: int, thread: int, times: int) -> None:
        # Whoever is killed between the two leaves an entry that counts no more.
        _ENTRY.pack_into(self._table, at, 0.0, name, thread, times)
        struct.pack_into("=d", self._table, at, until)


def _name(content: ContentId) -> int:
    return int.from_bytes(content[:8], "big")


def _places(thread: int, name: int) -> list[int]:
    first = hash((thread, name))
    return [(first + step) % _SLOTS * _ENTRY.size for step in range(_NEAR)]
