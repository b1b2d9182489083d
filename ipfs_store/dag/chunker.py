"""Where a blob is cut into leaves.

Fixed pieces give the CIDs of ``ipfs add``. Member-aligned leaves make equal files of different layers equal blocks: a leaf ends where a gzip
member or zstd frame ends, members too small for a useful block are grouped, and members of megabytes are cut inside. Where that is
depends on the bytes nearby alone, never on where they are in the blob, so a changed file moves no boundary but its neighbours'.

Both, groups and insides, end at *local minima*: each place where a leaf could end has a number made of the bytes before it, and a leaf
ends where that number is the least of all places within a window on either side. So leaves are hardly shorter than a window, twice that on
average, and seldom much longer. Ending them with a fixed probability instead gives lengths of every size for the same average, and a
change hits the long ones.
"""

from __future__ import annotations

import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from ipfs_store.errors import InvalidInput

FIXED_SIZE = 262_144
"""Kubo's default chunker, ``size-262144``."""
TARGET = 32_768
"""Average leaf aimed at (docs/benchmarks.md, "leaves")."""
MAX_LEAF = 1 << 20
"""bitswap's messages carry blocks of up to 2 MiB; 1 MiB is what all implementations take."""

_GZIP = b"\x1f\x8b\x08"
_ZSTD = b"\x28\xb5\x2f\xfd"
_GZIP_HEADER = 10  # bytes: magic, method, flags, time, extra flags, system (RFC 1952, section 2.3)
# Inside of a member: one place in some 2,000 bytes, of compressed data and of most others; found at 1 GB/s, since it begins with one byte.
_PLACE = re.compile(rb"\n[\x00-\x1f]")
# A member of a tar header alone has 121 bytes (median) to 155 (nine of ten). The file that it belongs to follows, and changes when it does.
_HEADER = 256
_LAST_CHOICE = 1 << 32
_LOOK_BACK = 64  # bytes that give such a place its number
# Members this large are read whole, so their leaves need not be small.
_INSIDE_WINDOW = 131_072


@dataclass(frozen=True, slots=True)
class Chunker:
    """A rule, as people write it: ``member`` (leaves of 32 KiB on average), ``member-65536``, or ``size-262144`` as `ipfs add` has it."""

    kind: Literal["member", "size"] = "member"
    size: int = TARGET

    @classmethod
    def parse(cls, text: str) -> Chunker:
        """Raises InvalidInput."""
        kind, _, number = text.partition("-")
        size = (TARGET if kind == "member" else FIXED_SIZE) if text == kind else int(number) if number.isascii() and number.isdigit() else 0
        # 4 KiB: leaves of less are more bookkeeping than bytes.
        if kind not in ("member", "size") or not (4096 if kind == "member" else 1) <= size <= MAX_LEAF:
            raise InvalidInput(
                f"{text[:100]!r} is no chunker", hint=f"write member, member-BYTES (4096 to {MAX_LEAF}) or size-BYTES (1 to {MAX_LEAF})"
            )
        return cls("member" if kind == "member" else "size", size)

    def leaves(self, data: memoryview) -> Iterator[memoryview]:
        """``data`` in leaves."""
        return fixed_leaves(data, self.size) if self.kind == "size" else member_leaves(data, member_starts(data), self.size)

    @property
    def inline(self) -> bool:
        """Whether a leaf as short as a tar header is put into the CID that links it: not where CIDs are to be those of ``ipfs add``."""
        return self.kind == "member"

    def __str__(self) -> str:
        return f"{self.kind}-{self.size}"


BY_MEMBER = Chunker()
"""The usual rule."""
AS_IPFS_ADD = Chunker("size", FIXED_SIZE)
"""Kubo's rule: the same bytes get the same CID."""


def fixed_leaves(data: memoryview, size: int = FIXED_SIZE) -> Iterator[memoryview]:
    """``data`` in pieces of ``size`` bytes, the last one shorter."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def member_starts(data: memoryview) -> Iterator[int]:
    """Where the gzip members or zstd frames of a blob begin, found as they are asked for; 0 alone for one of another kind.

    Found by their headers, not by the table of contents, which says where files begin and not where members do: so a blob is cut in the same
    places by who writes it and by who only has it. One writer's gzip headers are alike, and found nowhere else (on a Debian
    image of 18,509 members: 18,508 and the footer, though it holds hundreds of gzip files). Of zstd only the magic is: once in 4 GB there is one that is none, which does no harm.
    """
    first = bytes(data[:_GZIP_HEADER])
    if len(first) == _GZIP_HEADER and first.startswith(_GZIP):
        # All but the ninth byte, which says how hard was tried to compress: a writer may try harder for the table of contents.
        header = re.escape(first[:8]) + b"[\0\2\4]" + re.escape(first[9:])
    elif first.startswith((_ZSTD, b"\x50\x2a\x4d\x18")):
        header = re.escape(_ZSTD)
    else:
        header = b""
    yield 0
    if header:
        yield from (found.start() for found in re.finditer(header, data) if found.start())


def member_leaves(data: memoryview, starts: Iterable[int], target: int = TARGET) -> Iterator[memoryview]:
    """``data`` in leaves that end where members end; ``starts`` are the offsets at which members begin (sorted).

    A member of a quarter of ``target`` or more stands alone, smaller ones are grouped. Leaves of more than a tar header then are of about
    ``target`` bytes on average.
    Of more than 1 MiB, a member is cut inside, by content, from its own start.
    """
    # A file that stands alone keeps its block when its header changes (another time, as all files of an upgraded package have); in a group it
    # does not. Hence alone early, and the groups large to make up for it (docs/benchmarks.md, "leaves").
    alone, window = target // 4, target * 3 // 2
    group, ends = 0, list[int]()  # where the members begin that are in no leaf yet, and where each ends
    at = 0
    for start in chain(starts, (len(data),)):
        if not at < start <= len(data):
            continue
        if start - at >= alone:
            if ends:
                yield from _grouped(data, group, ends, window)
            yield from _inside(data[at:start]) if start - at > MAX_LEAF else (data[at:start],)
            group, ends = start, []
        else:
            ends.append(start)
        at = start
    if ends:
        yield from _grouped(data, group, ends, window)


def _grouped(data: memoryview, start: int, ends: Sequence[int], window: int) -> Iterator[memoryview]:
    """A run of small members, from ``start``, in leaves."""
    numbers = [
        zlib.crc32(data[begin:end]) | (_LAST_CHOICE if end - begin < _HEADER else 0)
        for begin, end in zip((start, *ends), ends, strict=False)
    ]
    yield from _pieces(data, start, ends, _minima(ends, numbers, window))


def _inside(member: memoryview) -> Iterator[memoryview]:
    """A large member in leaves; where there is no place for an end (a run of one byte), as long as they may be."""
    places = [found.end() for found in _PLACE.finditer(member)]
    numbers = [zlib.crc32(member[max(place - _LOOK_BACK, 0) : place]) for place in places]
    ends = [*_minima(places, numbers, _INSIDE_WINDOW), len(member)]
    at = 0
    for end in ends:
        while end - at > MAX_LEAF:
            yield member[at : at + MAX_LEAF]
            at += MAX_LEAF
        if end > at:
            yield member[at:end]
        at = end


def _pieces(data: memoryview, start: int, ends: Sequence[int], chosen: Sequence[int]) -> Iterator[memoryview]:
    """The run that begins at ``start``, cut at those of ``ends`` that were chosen, at the last, and before a leaf becomes too long."""
    cuts = {*chosen, ends[-1]}
    before = start
    for end in ends:
        if end - start > MAX_LEAF:
            yield data[start:before]
            start = before
        if end in cuts:
            yield data[start:end]
            start = end
        before = end


def _minima(places: Sequence[int], numbers: Sequence[int], window: int) -> list[int]:
    """The places whose number is less than that of every place up to ``window`` before it, and not more than that of any up to ``window`` behind it."""
    behind = set(_less(places[::-1], numbers[::-1], window, or_equal=True))
    return [place for place in _less(places, numbers, window, or_equal=False) if place in behind]


def _less(places: Sequence[int], numbers: Sequence[int], window: int, *, or_equal: bool) -> Iterator[int]:
    """The places whose number is less than (``or_equal``: at most) that of every place passed within ``window``."""
    rising: deque[tuple[int, int]] = deque()  # of what is within the window: every place with a number that no later one undercuts
    for place, number in zip(places, numbers, strict=True):
        while rising and abs(place - rising[0][0]) > window:
            rising.popleft()
        while rising and (rising[-1][1] > number or (or_equal and rising[-1][1] == number)):
            rising.pop()
        if not rising:
            yield place
        rising.append((place, number))
