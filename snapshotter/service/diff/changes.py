"""What an overlay's upper directory changes, as the entries of a layer (OCI image-spec, layer.md; kernel, filesystems/overlayfs.rst).

The upper directory says *which* paths changed; what they are now is read from the merged tree, since an upper file may have metadata only,
a folder may have been renamed without its contents, and attributes that an overlay inside the container set are stored under other names.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

_OPAQUE, _REDIRECT = "trusted.overlay.opaque", "trusted.overlay.redirect"


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the layer, in the order in which it has to be there: folders before what is in them."""

    path: str
    """Relative to the root, without a slash at either end; the name of what is gone for a whiteout, of the folder for an opaque one."""
    kind: Literal["entry", "whiteout", "opaque"]


def changes(upper: str, merged: str) -> Iterator[Change]:
    """Everything that ``upper`` changes; ``merged`` is the tree with it. The root's own owner and mode are no entry. Raises OSError."""
    # With a list instead of recursion: folders may be nested more deeply than Python calls.
    waiting = [(path, False) for path in _names(upper, "")]
    while waiting:
        path, new = waiting.pop()
        try:
            found = os.lstat(f"{merged if new else upper}/{path}")
            if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0 and not new:
                yield Change(path, "whiteout")
                continue
            yield Change(path, "entry")
            if not stat.S_ISDIR(found.st_mode):
                continue
            if not new and _attribute(f"{upper}/{path}", _REDIRECT):
                # It was renamed: what it had in lower layers is elsewhere there, so all of it is new here.
                yield Change(path, "opaque")
                new = True
            elif not new and _attribute(f"{upper}/{path}", _OPAQUE) == b"y":  # "x" is a folder with whiteouts of another form
                yield Change(path, "opaque")
            waiting += [(inside, new) for inside in _names(merged if new else upper, path)]
        except FileNotFoundError:
            continue  # a container that runs has removed it meanwhile


def _names(root: str, folder: str) -> list[str]:
    """What is in a folder, the first by name at the end."""
    with os.scandir(f"{root}/{folder}") as entries:
        return [f"{folder}/{name}" if folder else name for name in sorted((entry.name for entry in entries), reverse=True)]


def _attribute(path: str, name: str) -> bytes | None:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOENT):
            return None
        raise
