"""Where a blob is cut into leaves.

Fixed pieces give the CIDs of ``ipfs add``. Member-aligned leaves make equal files of different layers equal blocks: a leaf ends where a
gzip member or zstd frame ends, members too small for a useful block are grouped, and where a group ends depends on the members'
own bytes alone, so a changed file moves no boundary but its neighbours'.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

FIXED_SIZE = 262_144
"""Kubo's default chunker, ``size-262144``."""
TARGET = 131_072
"""Average leaf aimed at: bitswap and HTTP both fill a link with leaves of 64 to 128 KiB (docs/benchmarks.md)."""
MAX_LEAF = 1 << 20
"""bitswap's messages carry blocks of up to 2 MiB; 1 MiB is what all implementations take."""


def fixed_leaves(data: memoryview, size: int = FIXED_SIZE) -> Iterator[memoryview]:
    """``data`` in pieces of ``size`` bytes, the last one shorter."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def member_leaves(data: memoryview, boundaries: Sequence[int], target: int = TARGET) -> Iterator[memoryview]:
    """``data`` in leaves that end where members end; ``boundaries`` are the offsets at which members begin (sorted).

    A member of ``target`` bytes or more stands alone. One over 1 MiB is cut every ``2 * target`` bytes from its own start: equal
    members are equal leaves, and a compressed stream has no equal parts behind a change that a rolling hash could find.
    """
    if not data:
        return
    starts = _starts(boundaries, len(data))
    group = 0
    for start, end in zip(starts, [*starts[1:], len(data)], strict=True):
        size = end - start
        if size >= target:
            if group < start:
                yield data[group:start]
            yield from _pieces(data[start:end], 2 * target)
            group = end
            continue
        if end - group > MAX_LEAF:
            yield data[group:start]
            group = start
        # Ends a group with a probability in proportion to the member's size, so that groups are of ``target`` bytes on average.
        if zlib.crc32(data[start:end]) * target < size << 32:
            yield data[group:end]
            group = end
    if group < len(data):
        yield data[group:]


def _starts(boundaries: Sequence[int], size: int) -> list[int]:
    inside = boundaries[bisect_right(boundaries, 0) : bisect_left(boundaries, size)]
    return [0, *dict.fromkeys(inside)]


def _pieces(member: memoryview, size: int) -> Iterator[memoryview]:
    if len(member) <= MAX_LEAF:
        yield member
    else:
        yield from fixed_leaves(member, size)
