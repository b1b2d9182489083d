"""What is mounted, as /proc/self/mountinfo says (proc(5)); for all that mount, the holder among them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of the table."""

    device: str
    """``major:minor`` of the file system; binds of one file system have the same."""
    point: Path
    kind: str
    source: str
    options: str
    """Of the file system."""
    shared: bool = False
    """Whether what is mounted below is seen by other mount namespaces (mount_namespaces(7))."""


def parse_table(text: str) -> list[Mounted]:
    """The mounts in order; a later one at the same point covers the earlier."""
    mounts = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        _, _, device, _, point, _, *tags = before.split(" ")
        kind, source, options = after.split(" ", 2)
        mounts.append(Mounted(device, Path(_plain(point)), kind, _plain(source), options, any(tag.startswith("shared:") for tag in tags)))
    return mounts


def mount_table() -> list[Mounted]:
    """What this process sees mounted."""
    return parse_table(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))


def mounts_at(point: Path) -> list[Mounted]:
    """What is mounted on ``point``, the lowest first. Never asks the mount itself, which may hang."""
    return [mounted for mounted in mount_table() if mounted.point == point]


def covering(folder: Path, table: Sequence[Mounted]) -> Mounted:
    """The mount that ``folder`` is on."""
    above = {folder, *folder.parents}
    return max((mounted for mounted in table if mounted.point in above), key=lambda mounted: len(mounted.point.parts))


def is_mount_point(folder: Path) -> bool:
    """Whether another file system is mounted at ``folder``, which may be dead; False where there is no such folder."""
    try:
        return folder.stat().st_dev != folder.parent.stat().st_dev
    except FileNotFoundError:
        return False
    except OSError:  # ENOTCONN, EIO: something is there and does not answer
        return True


def _plain(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)
