"""Two directory trees compared entry by entry: what a container sees next to what the image had."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Seen:
    """All that a workload can tell about one path."""

    kind: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    rdev: int
    nlink: int
    link: str
    content: str
    xattrs: tuple[tuple[str, bytes], ...]
    same_as: str
    """The first path (in sorted order) that is the same inode; its own for a file with one name."""


def look(root: Path, *, content: bool = True, skip: frozenset[str] = frozenset()) -> dict[str, Seen]:
    """Everything below ``root`` (and the root, as ``.``) by relative path; ``skip`` names top-level entries to leave out."""
    first_name: dict[tuple[int, int], str] = {}
    return {path: _seen(root / path, path, first_name, content=content) for path in sorted(_walk(root, skip))}


def differences(left: dict[str, Seen], right: dict[str, Seen], *, ignore: frozenset[str] = frozenset()) -> list[str]:
    """One line for each path that differs, with the fields that do."""
    lines = [f"only on the left: {path}" for path in sorted(left.keys() - right.keys())]
    lines += [f"only on the right: {path}" for path in sorted(right.keys() - left.keys())]
    for path in sorted(left.keys() & right.keys()):
        for name in Seen.__dataclass_fields__:
            one, other = getattr(left[path], name), getattr(right[path], name)
            if one != other and name not in ignore:
                lines.append(f"{path}: {name} {one!r} != {other!r}")
    return lines


def _walk(root: Path, skip: frozenset[str]) -> Iterator[str]:
    yield "."
    for folder, folders, files in os.walk(root):
        if folder == str(root):
            folders[:] = [name for name in folders if name not in skip]
            files = [name for name in files if name not in skip]
        relative = os.path.relpath(folder, root)
        for name in (*folders, *files):
            yield os.path.normpath(os.path.join(relative, name))  # strings: 30,000 Paths take seconds


def _seen(path: Path, relative: str, first_name: dict[tuple[int, int], str], *, content: bool) -> Seen:
    at = path.lstat()
    regular, folder = stat.S_ISREG(at.st_mode), stat.S_ISDIR(at.st_mode)
    same_as = relative if folder else first_name.setdefault((at.st_dev, at.st_ino), relative)
    digest = ""
    if regular and content:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return Seen(
        kind=stat.S_IFMT(at.st_mode),
        mode=stat.S_IMODE(at.st_mode),
        uid=at.st_uid,
        gid=at.st_gid,
        mtime_ns=at.st_mtime_ns,
        # The size and link count of a folder are the file system's own business.
        size=0 if folder else at.st_size,
        rdev=at.st_rdev,
        nlink=0 if folder else at.st_nlink,
        link=str(path.readlink()) if stat.S_ISLNK(at.st_mode) else "",
        content=digest,
        xattrs=tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names if not name.startswith("trusted.overlay.")),
        same_as=same_as,
    )
