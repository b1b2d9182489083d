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
_ENTRY = struct.Struct("=dQII")
"""Until when it counts, the content's id as far as it fits, thread, times. It begins with what is written last."""
_UNTIL = struct.Struct("=d")
_KEY = struct.Struct("=QI")
_BUCKETS = 1 << 11
_BUCKET = 8 * _ENTRY.size
"""Bytes in which the entry of a key may be."""


class Told:
    """The table at ``path``, made if it is not there; without a path, of this process alone. Raises StorageFailed."""

    def __init__(self, path: Path | None = None) -> None:
        size = _BUCKETS * _BUCKET
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
        key, bucket = _place(thread, content)
        found = self._table.find(key, bucket, bucket + _BUCKET)  # three times for every small file: in one call
        at = found - _UNTIL.size
        if found < 0 or (at - bucket) % _ENTRY.size:
            return 1
        until, name, _, times = _ENTRY.unpack_from(self._table, at)
        now = time.monotonic()
        if not now < until <= now + _AGAIN:  # a file that outlived a reboot says nothing
            return 1
        self._write(at, until, name, thread, times + 1)
        return int(times) + 1

    def tell(self, thread: int, content: ContentId) -> None:
        """The thread is about to hear, for the first time, that the content is in the store."""
        key, bucket = _place(thread, content)
        found = self._table.find(key, bucket, bucket + _BUCKET) - _UNTIL.size
        if found < bucket or (found - bucket) % _ENTRY.size:  # in place of the oldest
            entries = list(_ENTRY.iter_unpack(self._table[bucket : bucket + _BUCKET]))
            found = bucket + _ENTRY.size * entries.index(min(entries))
        self._write(found, time.monotonic() + _AGAIN, _KEY.unpack(key)[0], thread, 1)

    def _write(self, at: int, until: float, name: int, thread: int, times: int) -> None:
        # Whoever is killed between the two leaves an entry that counts no more.
        _ENTRY.pack_into(self._table, at, 0.0, name, thread, times)
        _UNTIL.pack_into(self._table, at, until)


def _place(thread: int, content: ContentId) -> tuple[bytes, int]:
    """The key as an entry has it, and where its bucket begins."""
    name = int.from_bytes(content[:8], "big")
    return _KEY.pack(name, thread), hash((name, thread)) % _BUCKETS * _BUCKET
