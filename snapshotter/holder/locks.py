"""One process of a kind for each folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class Occupied(Exception):
    """Another process has the lock; ``pid`` is its process id as far as known, 0 if not."""

    def __init__(self, path: Path, pid: int) -> None:
        super().__init__(f"process {pid or '?'} has {path}")
        self.path = path
        self.pid = pid


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold ``path``, which then names this process; it ends with the process, however that ends. Raises Occupied, OSError."""
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Occupied(path, _pid(path)) from None
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        yield


def owner(path: Path) -> int:
    """The process id of who has the lock; 0 if nobody."""
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _pid(path)
    except FileNotFoundError:
        pass
    return 0


def _pid(path: Path) -> int:
    text = path.read_bytes()
    return int(text) if text.isdigit() else 0
