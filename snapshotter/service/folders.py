"""Folders of ordinary snapshots, and the mounts that containerd is told: bind mounts and overlayfs (kernel, filesystems/overlayfs.rst)."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from snapshotter.mounts import kernel
from snapshotter.mounts.idmap import IdMap

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mount:
    """What mount(2) is called with."""

    type: str
    source: str
    options: list[str] = field(default_factory=list)


class Folders:
    """``ROOT/snapshots/ID/{fs,work,root,data,ids}``."""

    def __init__(self, root: Path) -> None:
        self._snapshots = root / "snapshots"
        self._trash = root / "trash"
        self._snapshots.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._trash.mkdir(exist_ok=True, mode=0o700)

    def upper(self, number: int) -> Path:
        """Contents of a snapshot."""
        return self._snapshots / str(number) / "fs"

    def work(self, number: int) -> Path:
        """What overlayfs needs beside them."""
        return self._snapshots / str(number) / "work"

    def root(self, number: int) -> Path:
        """Where its overlay is mounted, if that is our task (`snapshotter.service.roots`)."""
        return self._snapshots / str(number) / "root"

    def data_note(self, number: int) -> Path:
        """A file that says which data layers that overlay has."""
        return self._snapshots / str(number) / "data"

    def idmap(self, number: int) -> IdMap | None:
        """How the owners of its files are shifted; None: not at all."""
        try:
            return IdMap.parse((self._snapshots / str(number) / "ids").read_text())
        except FileNotFoundError:
            return None

    def number_of(self, path: str) -> int | None:
        """The snapshot that a mount's source belongs to."""
        parts = Path(path).relative_to(self._snapshots).parts if path.startswith(f"{self._snapshots}/") else ()
        return int(parts[0]) if parts and parts[0].isdecimal() else None

    def make(self, number: int, *, active: bool, like: Path | None, idmap: IdMap | None = None, shifted: IdMap | None = None) -> None:
        """Make the folders; ``like`` is the parent's root, whose owner (stored as ``shifted`` says) and mode the new root has.

        With ``idmap`` the owners of its files are shifted. Raises OSError, InvalidInput.
        """
        folder = self._snapshots / str(number)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)  # left by a daemon that was killed before it could say that the snapshot exists
        (folder / "fs").mkdir(parents=True, mode=0o755)
        if active:
            (folder / "work").mkdir(mode=0o711)
        if idmap is not None:
            (folder / "ids").write_text(f"{idmap}\n")
        owner = (0, 0)
        if like is not None:
            above = like.stat()
            owner = above.st_uid, above.st_gid
            if shifted is not None:
                owner = shifted.inside(*owner)
            os.chmod(folder / "fs", stat.S_IMODE(above.st_mode))  # noqa: PTH101
        os.chown(folder / "fs", *(idmap.outside(*owner) if idmap is not None else owner))

    def release(self, number: int) -> None:
        """Take away the overlay that we mounted, whichever mode mounts now; whoever uses it keeps it. Nothing happens if there is none."""
        try:
            while kernel.unmount(self.root(number), lazy=True):
                pass
        except OSError as error:
            _log.warning("%s", error)

    def discard(self, number: int) -> None:
        """Take the folders out of sight at once and delete them; what cannot be deleted now goes with the next `empty_trash`."""
        self.release(number)
        aside = self._trash / f"{number}-{uuid.uuid4().hex}"
        try:
            (self._snapshots / str(number)).rename(aside)
        except FileNotFoundError:
            return
        self._delete(aside)

    def empty_trash(self, known: Sequence[int]) -> None:
        """Delete what was discarded, and the folders of snapshots that are not in ``known``."""
        names = {str(number) for number in known}
        for folder in self._snapshots.iterdir():
            if folder.name not in names:
                if folder.name.isdecimal():
                    self.release(int(folder.name))
                with contextlib.suppress(FileNotFoundError):
                    folder.rename(self._trash / f"{folder.name}-{uuid.uuid4().hex}")
        for folder in self._trash.iterdir():
            self._delete(folder)

    def _is_ours(self, folder: Path) -> bool:
        return folder.name == "fs" and folder.parent.parent == self._snapshots

    def _delete(self, folder: Path) -> None:
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning("%s could not be deleted, and is tried again at the next cleanup: %s", folder, error)

    def usage(self, number: int) -> tuple[int, int]:
        """(bytes on disk, inodes) below a snapshot's root, hard links counted once."""
        seen: set[tuple[int, int]] = set()
        size = 0
        waiting = [str(self.upper(number))]
        first = os.stat(waiting[0])  # noqa: PTH116
        seen.add((first.st_dev, first.st_ino))
        size += first.st_blocks * 512
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # an active snapshot changes under us
                        status = entry.stat(follow_symlinks=False)
                        if (status.st_dev, status.st_ino) not in seen:
                            seen.add((status.st_dev, status.st_ino))
                            size += status.st_blocks * 512
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
        return size, len(seen)

    def mounts(self, number: int, lowers: Sequence[Path], *, active: bool) -> list[Mount]:
        """How the snapshot is mounted on top of ``lowers``, the uppermost first."""
        if not lowers:
            return [Mount("bind", str(self.upper(number)), ["rw" if active else "ro", "rbind"])]
        if not active and len(lowers) == 1:
            return [Mount("bind", str(lowers[0]), ["ro", "rbind"])]
        options = list(_supported())
        if any(self.data_note(int(folder.parent.name)).exists() for folder in (self.upper(number), *lowers) if self._is_ours(folder)):
            # Files of it may have metadata only, and folders may be renamed: it was once mounted by `snapshotter.service.roots`.
            options += ["metacopy=on", "redirect_dir=on"]
        if len({self._is_ours(folder) for folder in (*lowers, *([self.upper(number)] if active else []))}) > 1:
            options += _one_device()
        if active:
            options += [f"workdir={self.work(number)}", f"upperdir={self.upper(number)}"]
        options.append("lowerdir=" + ":".join(map(str, lowers)))
        return [Mount("overlay", "overlay", options)]


@cache
def _one_device() -> tuple[str, ...]:
    # Where layers are on another file system than what is written, files have another st_dev than folders without it: `du -x` counts none.
    return ("xino=on",) if Path("/sys/module/overlay/parameters/xino_auto").exists() else ()


@cache
def _supported() -> tuple[str, ...]:
    # An index would tie an upper directory to one set of lower ones, which FUSE's changing file handles break.
    return ("index=off",) if Path("/sys/module/overlay/parameters/index").exists() else ()
