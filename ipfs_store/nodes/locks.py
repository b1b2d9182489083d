"""Advisory locks on files and folders (flock): the kernel lets go of them when their owner dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ipfs_store.errors import StorageFailed

_POLL = 0.005
"""Seconds between tries. flock has no timeout of its own; a holder keeps the store's lock for milliseconds."""


def storage_failed(error: OSError, path: Path | str, doing: str) -> StorageFailed:
    """``error`` as one line that names the path, with what to do where that is known."""
    hints = {
        errno.ENOSPC: "free some space, run `ipfs-store gc`, or put the store elsewhere with IPFS_STORE_PATH",
        errno.EDQUOT: "the quota of this user is used up; run `ipfs-store gc` or raise it",
        errno.EFBIG: "the limit of file sizes (ulimit -f) is too low",
        errno.EROFS: "the file system is mounted read-only",
        errno.EACCES: "run as the owner of the store, or put it elsewhere with IPFS_STORE_PATH",
        errno.EPERM: "run as the owner of the store, or put it elsewhere with IPFS_STORE_PATH",
        errno.EMFILE: "raise the limit of open files (ulimit -n)",
    }
    return StorageFailed(f"{path}: cannot {doing}: {error.strerror or error}", hint=hints.get(error.errno or 0))


@contextmanager
def locked(path: Path, *, exclusive: bool, timeout: float = 60.0) -> Iterator[None]:
    """Hold the lock of file ``path`` (made if missing), waiting ``timeout`` seconds at most; raises StorageFailed."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise storage_failed(error, path, "open the lock") from error
    try:
        deadline = time.monotonic() + timeout
        while not try_lock(handle, exclusive=exclusive):
            if time.monotonic() > deadline:
                raise StorageFailed(
                    f"{path}: another process has held this lock for {timeout:g} s",
                    hint="a stopped or hanging ipfs-store process has it: `fuser` on that file names it",
                )
            time.sleep(_POLL)
        yield
    finally:
        os.close(handle)


def try_lock(handle: int, *, exclusive: bool) -> bool:
    """Lock an open file or folder until it is closed; False if somebody else has it."""
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
