"""What belongs to a living process: folders and files that are locked until their owner lets go of them, or is gone."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from pathlib import Path

from ipfs_store.errors import StorageFailed
from ipfs_store.nodes.locks import storage_failed, try_lock

_log = logging.getLogger(__name__)


class OwnedFolder:
    """A folder under ``open/`` that belongs to a living process: locked until it is removed, or its owner is gone."""

    def __init__(self, path: Path, handle: int) -> None:
        """Use ``make``."""
        self.path = path
        self._handle = handle

    @classmethod
    def make(cls, parent: Path) -> OwnedFolder:
        """A new one; raises StorageFailed."""
        while True:
            path = parent / secrets.token_hex(8)
            try:
                path.mkdir(mode=0o700)
                handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                if parent.is_dir():
                    continue  # somebody who cleaned up took it between the two calls
                raise StorageFailed(f"{parent}: the folder is gone") from None
            except OSError as error:
                raise storage_failed(error, path, "make a folder") from error
            if try_lock(handle, exclusive=True) and path.exists():
                return cls(path, handle)
            os.close(handle)

    def remove(self) -> None:
        """Delete it and all that is in it."""
        if self._handle >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._handle)
            self._handle = -1


def remove_abandoned(parent: Path) -> int:
    """Delete the folders under ``parent`` whose owners are gone; how many there were. Raises StorageFailed."""
    count = 0
    try:
        paths = list(parent.iterdir())
    except OSError as error:
        raise storage_failed(error, parent, "list unfinished writes") from error
    for path in paths:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise storage_failed(error, path, "clean up unfinished writes") from error
        try:
            if try_lock(handle, exclusive=True):
                _log.info("%s: removing what a process that is gone left unfinished", path)
                shutil.rmtree(path, ignore_errors=True)
                count += 1
        finally:
            os.close(handle)
    return count
