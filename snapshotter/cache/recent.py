"""The chunks used last, in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sized
from typing import Generic, TypeVar

T = TypeVar("T", bound=Sized)

# The kernel asks for 128 KiB to 1 MiB at a time; without these, a sequential read of a 4 MiB chunk (other tools' default) would read and
# hash it 4 to 32 times. What was read stays in the page cache, so more than a handful of chunks brings nothing.
RECENT_BYTES = 24 << 20


class RecentChunks(Generic[T]):
    """Chunks by key, the least recently used forgotten beyond ``max_bytes``. One chunk over the limit is kept alone."""

    def __init__(self, max_bytes: int = RECENT_BYTES) -> None:
        self.max_bytes = max_bytes
        self.used = 0
        self._chunks: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable) -> T | None:
        """The chunk, if it is still here."""
        data = self._chunks.get(key)
        if data is not None:
            self._chunks.move_to_end(key)
        return data

    def put(self, key: Hashable, data: T) -> None:
        """Keep ``data`` and let go of the oldest."""
        before = self._chunks.pop(key, None)
        self.used += len(data) - (0 if before is None else len(before))
        self._chunks[key] = data
        while self.used > self.max_bytes and len(self._chunks) > 1:
            _, oldest = self._chunks.popitem(last=False)
            self.used -= len(oldest)
