"""Roots of containers over metadata images: overlays that we mount at ``ROOT/snapshots/ID/root``, so that containerd only binds them.

containerd cannot be given their options: from 2.3 on it opens each lower directory that it finds in them, and all of them have to fit on a
page. A root stays mounted when the daemon ends, and is found again by the next; after a reboot, or when the FUSE mount below it is another
one by now, it is mounted anew.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipfs_store.errors import StorageFailed, Unavailable
from snapshotter.holder.table import is_mount_point
from snapshotter.mounts import kernel
from snapshotter.mounts.idmap import IdMap, user_namespace
from snapshotter.mounts.stack import Lower, Stack, Xino, mount_stack
from snapshotter.service.folders import Folders, Mount

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Layer:
    """What one committed snapshot gives to a root."""

    path: Path
    idmap: IdMap | None = None
    """How the owners of its files are shifted already."""


class Roots:
    """Mounts roots and takes them away. Thread-safe."""

    def __init__(self, folders: Folders, data: Sequence[Path], scratch: Path, *, xino: Xino = "on") -> None:
        """``data``: the data-only layers; ``scratch``: a folder for mounts that exist for a moment."""
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folders = folders
        self._data = tuple(data)
        self._scratch = scratch
        self._xino: Xino = xino
        self._locks: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)
        self._locks_lock = threading.Lock()

    def alive(self, number: int, *, active: bool) -> list[Mount] | None:
        """What containerd is told of a root that is mounted on the data layers of now; None: it has to be mounted."""
        root = self._folders.root(number)
        if not is_mount_point(root):
            return None
        # One on another FUSE mount than today's is dead, or will be when its server ends.
        return _bind(root, active=active) if _read(self._folders.data_note(number)) == self._identity() else None

    def mounts(self, number: int, lowers: Sequence[Layer], *, active: bool, idmap: IdMap | None) -> list[Mount]:
        """What containerd is told: a bind of the root, which is mounted when this returns. Raises Unavailable, StorageFailed."""
        root = self._folders.root(number)
        with self._locked(number):
            if mounts := self.alive(number, active=active):
                return mounts
            try:
                if kernel.unmount(root, lazy=True):
                    _log.warning("%s is mounted again, since the data plane's mount is another one by now", root)
                root.mkdir(mode=0o700, exist_ok=True)
                self._folders.data_note(number).write_text(self._identity())
                above = (self._folders.upper(number), self._folders.work(number)) if active else None
                mount_layers(lowers, root, data=self._data, above=above, idmap=idmap, scratch=self._scratch, xino=self._xino)
            except OSError as error:
                raise StorageFailed(f"the root of snapshot {number} cannot be mounted: {error}") from error
        return _bind(root, active=active)

    def forget(self, number: int) -> None:
        """The root is not to be mounted again."""
        with self._locks_lock:
            self._locks.pop(number, None)

    def _identity(self) -> str:
        """Names the file systems of the data layers: another FUSE mount has another device number."""
        try:
            return " ".join(str(path.stat().st_dev) for path in self._data)
        except OSError as error:
            raise Unavailable(f"the data plane's mount does not answer: {error}", hint="`ipfs-snapshotter status` says more") from error

    @contextlib.contextmanager
    def _locked(self, number: int) -> Iterator[None]:
        with self._locks_lock:
            lock = self._locks[number]
        with lock:
            yield


def mount_layers(
    layers: Sequence[Layer],
    target: Path,
    *,
    data: Sequence[Path],
    above: tuple[Path, Path] | None,
    idmap: IdMap | None,
    scratch: Path,
    xino: Xino = "on",
) -> None:
    """Mount ``layers``, the uppermost first, with owners shifted as ``idmap`` says; ``above``: upper and work. Raises OSError."""
    with contextlib.ExitStack() as stack:
        shifts = {layer.idmap: IdMap.between(layer.idmap, idmap) for layer in layers}
        namespaces = {have: stack.enter_context(user_namespace(shift)) for have, shift in shifts.items() if shift is not None}
        lowers = [Lower(layer.path, namespaces.get(layer.idmap)) for layer in layers]
        upper, work = above or (None, None)
        mount_stack(Stack(lowers, data, upper, work, xino), target, scratch=scratch)


def _bind(root: Path, *, active: bool) -> list[Mount]:
    return [Mount("bind", str(root), ["rbind", "rw" if active else "ro"])]


def _read(note: Path) -> str:
    try:
        return note.read_text()
    except FileNotFoundError:
        return ""
