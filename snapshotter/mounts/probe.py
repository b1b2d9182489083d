"""Which mounts this kernel can make: found out by making them, since version numbers say little about what a distribution built."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ipfs_store.erofs import Inode, write_image
from snapshotter.mounts import kernel
from snapshotter.mounts.stack import Backing, Lower, Stack, mount_image, mount_stack

_log = logging.getLogger(__name__)
_CONTENT = b"what the data layer has"


@dataclass(frozen=True, slots=True)
class Ability:
    """What the probe found."""

    backing: Backing | None
    """How metadata images are mounted; None: native mounts do not work here."""
    why: str
    """In a few words, for people."""

    @property
    def native(self) -> bool:
        """Whether native mounts work."""
        return self.backing is not None


class _Wrong(OSError):
    """It was mounted, and does not do what it has to."""


def probe(folder: Path, data: Sequence[Path] = ()) -> Ability:
    """Mount a small image below ``folder`` as containers' roots are, with the data layers ``data`` as well, and use it; nothing of it is left."""
    failures = []
    backings: tuple[Backing, ...] = ("file", "loop")
    for backing in backings:
        work = Path(tempfile.mkdtemp(prefix="probe-", dir=folder))
        try:
            with contextlib.ExitStack() as stack:
                _try(work, backing, data, stack)
            how = "mounted as files" if backing == "file" else "on loop devices"
            return Ability(backing, f"EROFS images {how} under overlayfs with data-only layers")
        except OSError as error:
            failures.append(f"{backing}: {error}")
        finally:
            shutil.rmtree(work)
    return Ability(None, "; ".join(failures))


def _try(work: Path, backing: Backing, data: Sequence[Path], stack: contextlib.ExitStack) -> None:
    for name in ("meta", "data", "data/aa", "upper", "work", "root", "upper2", "work2", "nested"):
        (work / name).mkdir()
    (work / "data/aa/content").write_bytes(_CONTENT)
    xattrs = {b"trusted.overlay.metacopy": b"", b"trusted.overlay.redirect": b"/aa/content"}
    file = Inode(stat.S_IFREG | 0o644, size=len(_CONTENT), xattrs=xattrs)
    folder = Inode(stat.S_IFDIR | 0o755, children={b"file": file})
    (work / "image").write_bytes(write_image(Inode(stat.S_IFDIR | 0o755, children={b"folder": folder})))

    def mounted(name: str) -> None:
        stack.callback(kernel.unmount, work / name, lazy=True)

    mount_image(work / "image", work / "meta", backing)
    mounted("meta")
    wanted = Stack([Lower(work / "meta")], [work / "data", *data], work / "upper", work / "work")
    mount_stack(wanted, work / "root", scratch=work)
    mounted("root")
    # Containers run Docker and the like: an overlay on top has to work too (a file-backed image may use up the kernel's depth of stacking).
    mount_stack(Stack([Lower(work / "root")], (), work / "upper2", work / "work2"), work / "nested", scratch=work)
    mounted("nested")
    found = work / "nested/folder/file"
    if found.read_bytes() != _CONTENT:
        raise _Wrong("a file of the data-only layer reads wrong")
    found = work / "root/folder/file"
    found.chmod(0o600)
    if "trusted.overlay.metacopy" not in os.listxattr(work / "upper/folder/file"):
        raise _Wrong("changing a mode copies the file (metacopy does not work)")
    (work / "root/folder").rename(work / "root/moved")
    if (work / "root/moved/file").read_bytes() != _CONTENT:
        raise _Wrong("a file in a renamed folder reads wrong")
    if (work / "root").stat().st_dev != (work / "root/moved/file").stat().st_dev:
        raise _Wrong("files and folders have different devices (xino does not work)")
