"""Owners of user namespaces (user_namespaces(7)): what containerd says in labels, and namespaces for idmapped mounts."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipfs_store.errors import InvalidInput

UID_LABEL = "containerd.io/snapshot/uidmapping"
GID_LABEL = "containerd.io/snapshot/gidmapping"
_LARGEST = 1 << 32


@dataclass(frozen=True, slots=True)
class Range:
    """``size`` ids from ``inside`` in the container are those from ``outside`` on the host."""

    inside: int
    outside: int
    size: int

    @classmethod
    def parse(cls, text: str) -> tuple[Range, ...]:
        """``0:100000:65536``, several with commas between; raises InvalidInput."""
        found = []
        for part in text.split(","):
            try:
                inside, outside, size = (int(number) for number in part.split(":"))
            except ValueError:
                raise InvalidInput(f"the mapping of ids {text!r} is not CONTAINER:HOST:SIZE") from None
            if inside < 0 or outside < 0 or size <= 0 or max(inside, outside) + size > _LARGEST:
                raise InvalidInput(f"the mapping of ids {text!r} is outside of 0 to {_LARGEST - 1}")
            found.append(cls(inside, outside, size))
        return tuple(found)

    def __str__(self) -> str:
        return f"{self.inside}:{self.outside}:{self.size}"


@dataclass(frozen=True, slots=True)
class IdMap:
    """How owners in an image become owners on the host, and back."""

    uids: tuple[Range, ...]
    gids: tuple[Range, ...]

    @classmethod
    def from_labels(cls, labels: Mapping[str, str]) -> IdMap | None:
        """What a snapshot's labels say; None where they say nothing. Raises InvalidInput."""
        uids, gids = labels.get(UID_LABEL, ""), labels.get(GID_LABEL, "")
        if not uids and not gids:
            return None
        if not uids or not gids:
            raise InvalidInput("a snapshot with shifted owners needs both labels", hint=f"{UID_LABEL} and {GID_LABEL}")
        return cls(Range.parse(uids), Range.parse(gids))

    @classmethod
    def between(cls, have: IdMap | None, want: IdMap | None) -> IdMap | None:
        """What shifts owners that are stored as ``have`` says to those that ``want`` says; None: nothing has to be done."""
        if have == want:
            return None
        identity = IdMap(_ALL, _ALL)
        have, want = have or identity, want or identity
        return cls(_compose(have.uids, want.uids), _compose(have.gids, want.gids))

    @classmethod
    def parse(cls, text: str) -> IdMap:
        """What ``str`` gave; raises InvalidInput."""
        uids, _, gids = text.strip().partition(" ")
        return cls(Range.parse(uids), Range.parse(gids))

    def __str__(self) -> str:
        return f"{','.join(map(str, self.uids))} {','.join(map(str, self.gids))}"

    def outside(self, uid: int, gid: int) -> tuple[int, int]:
        """Owner on the host; raises InvalidInput for one that is not mapped."""
        return _outside(uid, self.uids), _outside(gid, self.gids)

    def inside(self, uid: int, gid: int) -> tuple[int, int]:
        """Owner in the container; raises InvalidInput for one that is not mapped."""
        return _inside(uid, self.uids), _inside(gid, self.gids)


@contextlib.contextmanager
def user_namespace(wanted: IdMap) -> Iterator[int]:
    """A descriptor of a user namespace with these ids, for an idmapped mount. Raises OSError."""
    # A process of its own makes it, since a process with threads cannot; the descriptor keeps it when that has ended.
    with subprocess.Popen(["unshare", "--user", "sh", "-c", "echo; read _"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            folder = Path(f"/proc/{process.pid}")
            for name, ranges in (("uid_map", wanted.uids), ("gid_map", wanted.gids)):
                (folder / name).write_text("".join(f"{r.inside} {r.outside} {r.size}\n" for r in ranges))
            descriptor = os.open(folder / "ns" / "user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            process.kill()
    try:
        yield descriptor
    finally:
        os.close(descriptor)


_ALL = (Range(0, 0, _LARGEST - 1),)  # the last id means "none" to the kernel


def _compose(have: Sequence[Range], want: Sequence[Range]) -> tuple[Range, ...]:
    found = []
    for one in have:
        for other in want:
            start = max(one.inside, other.inside)
            size = min(one.inside + one.size, other.inside + other.size) - start
            if size > 0:
                found.append(Range(start - one.inside + one.outside, start - other.inside + other.outside, size))
    return tuple(found)


def _outside(number: int, ranges: Sequence[Range]) -> int:
    for at in ranges:
        if 0 <= number - at.inside < at.size:
            return number - at.inside + at.outside
    raise InvalidInput(f"id {number} of the image is not in the snapshot's mapping of ids")


def _inside(number: int, ranges: Sequence[Range]) -> int:
    for at in ranges:
        if 0 <= number - at.outside < at.size:
            return number - at.outside + at.inside
    raise InvalidInput(f"id {number} of the host is not in the snapshot's mapping of ids")
