"""Which entries of a tar go into a layer, and which of them first (estargz, "Prioritized Files and Landmark Files")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from ipfs_store.formats.entries import normalise
from ipfs_store.formats.headers import Header
from ipfs_store.formats.names import NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_NAME
from ipfs_store.formats.tarball import TarReader

_OURS = frozenset((TOC_NAME, PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK))


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry of a seekable tar is."""

    number: int
    """As it comes, from zero."""
    offset: int
    pax: Mapping[str, str]
    """Global headers in force there."""
    hardlink: str
    """Normalised target, empty for what is no hard link."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The order of a layer."""

    first: tuple[Place, ...]
    """The prioritized entries and what they need, in order."""
    left_out: frozenset[int]
    """Numbers of entries that do not come after those: they have come, or a later one of the same path replaces them."""
    missing: tuple[str, ...]
    """Prioritized paths that are not there."""


def belongs(path: str, header: Header) -> bool:
    """Whether an entry is part of the layer: TOC and landmarks of an earlier conversion are not, nor is a root that is no directory."""
    return path not in _OURS and (bool(path) or header.type == "dir")


def plan(file: BinaryIO, prioritized: Sequence[str]) -> Plan:
    """Read the headers of the seekable tar ``file`` from its beginning. Of a path that comes twice the last entry counts, as when unpacking."""
    file.seek(0)
    reader = TarReader(file)
    places: dict[str, Place] = {}
    left_out: set[int] = set()
    offset = 0
    while (header := reader.next()) is not None:
        path = normalise(header.name)
        number = reader.count - 1
        if belongs(path, header):
            before = places.pop(path, None)
            if before is not None:
                left_out.add(before.number)
            target = normalise(header.link) if header.type == "hardlink" else ""
            places[path] = Place(number, offset, reader.global_pax, target)
        offset = reader.following
    first: dict[str, Place] = {}
    missing = tuple(name for name in prioritized if not _bring(normalise(name), places, first))
    return Plan(tuple(first.values()), frozenset(left_out.union(place.number for place in first.values())), missing)


def _bring(path: str, places: Mapping[str, Place], first: dict[str, Place]) -> bool:
    """Put ``path`` into ``first``, behind its directories and the target of a hard link; whether it is there."""
    waiting = [path]
    while waiting:
        name = waiting[-1]
        place = places.get(name)
        needed = [name.rpartition("/")[0]] if name else []
        if place is not None and place.hardlink:
            needed.append(place.hardlink)
        # A loop of hard links comes back to one that waits already.
        due = [other for other in needed if other in places and other not in first and other not in waiting]
        if due:
            waiting += due[::-1]
            continue
        waiting.pop()
        if place is not None:
            first.setdefault(name, place)
    return path in places
