"""Pinned roots and their names: one small file each, since a file is what every process sees at once and a rename is atomic."""

from __future__ import annotations

import os
from pathlib import Path

from ipfs_store.cids import Cid, cid_of_name, format_cid
from ipfs_store.errors import InvalidCid, NotFound
from ipfs_store.nodes.locks import storage_failed


class Pins:
    """The folder ``pins/`` of a block store. Synchronous; any thread, any number of processes."""

    def __init__(self, path: Path) -> None:
        """The pins in ``path``, a folder that exists."""
        self._path = path

    def add(self, root: Cid, name: str) -> None:
        """Pin, or give a pin another name, on the disk when it returns; raises StorageFailed."""
        path = self._path / format_cid(root)
        temporary = self._path / f".{os.getpid()}-{format_cid(root)}"
        try:
            with temporary.open("wb") as file:
                file.write(name.encode())
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
            self._sync_folder()
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise storage_failed(error, path, "pin") from error

    def remove(self, root: Cid) -> None:
        """Unpin; raises NotFound, StorageFailed."""
        path = self._path / format_cid(root)
        try:
            path.unlink()
            self._sync_folder()
        except FileNotFoundError as error:
            raise NotFound(f"{format_cid(root)} is not pinned", hint="`ipfs-store pin ls` lists what is") from error
        except OSError as error:
            raise storage_failed(error, path, "unpin") from error

    def name(self, root: Cid) -> str | None:
        """The name of a pin; None where ``root`` is not pinned. Raises StorageFailed."""
        path = self._path / format_cid(root)
        try:
            return path.read_bytes().decode(errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_failed(error, path, "read a pin") from error

    def roots(self) -> set[Cid]:
        """The pinned roots."""
        found = set()
        try:
            names = [path.name for path in self._path.iterdir()]
        except OSError as error:
            raise storage_failed(error, self._path, "list the pins") from error
        for name in names:
            if not name.startswith("."):
                try:
                    found.add(cid_of_name(name))
                except InvalidCid:
                    continue  # somebody else's file: the folder is ours, but it is no reason to stop
        return found

    def names(self) -> dict[Cid, str]:
        """The pinned roots with their names."""
        found = {}
        for root in self.roots():
            name = self.name(root)
            if name is not None:  # else it was unpinned meanwhile
                found[root] = name
        return found

    def _sync_folder(self) -> None:
        handle = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
