"""A range of a blob in the pieces in which it came."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence


class Pieces:
    """Bytes of a blob from ``start`` on, whose pieces lie one behind the other: nothing is copied but what crosses from one to the next."""

    def __init__(self, start: int, pieces: Sequence[bytes | memoryview]) -> None:
        self.start = self.end = start
        self._starts: list[int] = []
        self._pieces = [memoryview(piece) for piece in pieces]
        for piece in self._pieces:
            self._starts.append(self.end)
            self.end += len(piece)

    def cut(self, offset: int, length: int) -> bytes | memoryview:
        """What the blob has from ``offset``: ``length`` bytes, fewer at the end of the pieces."""
        first = bisect_right(self._starts, offset) - 1
        at, end = self._starts[first], offset + length
        found = [self._pieces[first][offset - at : end - at]]
        for number in range(first + 1, len(self._pieces)):
            at = self._starts[number]
            if at >= end:
                break
            found.append(self._pieces[number][: end - at])
        return found[0] if len(found) == 1 else b"".join(found)
