"""How far a file that is read in order is read ahead of."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

File = tuple[int, int]
"""(generation of the layer, number of the file)"""
FIRST = 1 << 20
MOST = 4 << 20
"""Bytes of a file that are read ahead together. The event loop takes some 0.6 ms for a fetch, whatever its size, and a thread 10 ms for 4 MiB."""
_LEAD = 8 << 20
"""As far ahead of its reader as this, so that two processors always have work, and memory for recent chunks has room for three such files."""
_OUT_OF_ORDER = 2 << 20
"""What the kernel asks for ahead of a reader comes in pieces of 1 MiB, which may overtake each other."""
_FILES = 64


@dataclass(slots=True)
class _Place:
    read: int
    """Where what was asked for ends."""
    ahead: int
    """Where what is read ahead ends."""
    step: int = FIRST


class InOrder:
    """Which files are read in order now, and what of them is worth reading ahead."""

    def __init__(self) -> None:
        self._places: OrderedDict[File, _Place] = OrderedDict()

    def following(self, file: File, start: int, end: int, size: int) -> tuple[int, int] | None:
        """Where the stretch begins and ends that is worth reading ahead, now that this range of a file of ``size`` bytes is asked for; None for nothing."""
        place = self._places.get(file)
        if place is None or not -_OUT_OF_ORDER <= start - place.read <= 0:
            self._places[file] = _Place(end, end)
            self._places.move_to_end(file)
            if len(self._places) > _FILES:
                self._places.popitem(last=False)
            return None
        self._places.move_to_end(file)
        place.read = max(place.read, end)
        first = max(place.ahead, place.read)
        last = min(first + place.step, size)
        if first >= last or last - place.read > _LEAD:
            return None
        place.ahead = last
        place.step = min(2 * place.step, MOST)
        return first, last

    def not_here(self, file: File) -> None:
        """It has to be fetched from elsewhere: nothing more of it is read ahead, unless it is read from the beginning of something again."""
        place = self._places.get(file)
        if place is not None:
            place.ahead = 1 << 62
