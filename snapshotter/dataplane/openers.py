"""Which threads opened which files, in a file that the data plane after this one maps as well.

A read does not say who waits for it, so those who opened the file are looked at (`waiters`); and the next data plane, to which the kernel
sends the read again, was not told of the opening. Shared memory outlives a process that is killed, and an entry costs a microsecond.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from ipfs_store.errors import StorageFailed

SLOTS = 1 << 14
"""Files open at a time that are remembered, in 192 KiB; of those beyond, a direct read that waits over a hand-over outlives its process."""


class Openers:
    """The table at ``path``, made if it is not there. Raises StorageFailed."""

    def __init__(self, path: Path) -> None:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(descriptor, SLOTS * 12)
                table = memoryview(mmap.mmap(descriptor, SLOTS * 12))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StorageFailed(f"{path} cannot be made or mapped: {error.strerror}", hint="is the disk full?") from error
        self._handles, self._threads = table[: SLOTS * 8].cast("Q"), table[SLOTS * 8 :].cast("I")
        self._free = [slot for slot, thread in enumerate(self._threads) if not thread]

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """(slot, handle, thread) of each entry."""
        for slot, thread in enumerate(self._threads):
            if thread:
                yield slot, self._handles[slot], thread

    def note(self, handle: int, thread: int) -> int | None:
        """The slot of a new entry; None if the table is full."""
        if not self._free or thread <= 0:
            return None
        slot = self._free.pop()
        # Whoever is killed between the two leaves an entry without a thread, which is none.
        self._handles[slot] = handle
        self._threads[slot] = thread
        return slot

    def drop(self, slot: int) -> None:
        """Take an entry away."""
        self._threads[slot] = 0
        self._free.append(slot)
