"""Blocks in a folder, one file each, shared by any number of processes.

::

    STORE/version             "1"
    STORE/lock                short critical sections between writers (shared) and the collector (exclusive)
    STORE/blocks/XY/bafk...   a block; the file's name is its CID, XY are two of the name's characters
    STORE/open/ID/            what one process or push is writing: its unfinished files, and the journal of what must be kept
    STORE/pins/bafy...        a pinned root; the file holds the pin's name

Everything that this module and ``staging`` promise rests on three rules:

1. A file under ``blocks/`` was complete when it got its name: it is written under ``open/`` and renamed.
2. What a push brings is on the disk before it gets its name (``staging``). What was merely fetched is not waited for: after
   a power cut it may be torn, and then rule 3 finds it out.
3. Every block is hashed when it is read. One that does not match is removed, logged, and counts as absent.

Nobody cleans up after a process that was killed, except the next one to open the store: each ``open/ID`` is locked by its
owner, so one that can be locked by somebody else has none.
"""

from __future__ import annotations

import base64
import binascii
import ctypes
import logging
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipfs_store.cids import Cid, cid_of, format_cid, validate_cid, verify_block
from ipfs_store.cids.cid import identity_block
from ipfs_store.errors import BlockMismatch, InvalidCid, StorageFailed
from ipfs_store.nodes.locks import locked, storage_failed, try_lock

_log = logging.getLogger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)
_VERSION = "1"
_EMPTY_FILES = {cid_of(codec, b"") for codec in (0x55, 0x70, 0x71)}


@dataclass(frozen=True, slots=True)
class StoreStats:
    """How much a store holds."""

    blocks: int
    bytes: int


class BlockStore:
    """The folder. Every method is synchronous, blocks on the disk, and may be called from any thread."""

    def __init__(self, path: Path) -> None:
        """Open the store at ``path``, made if missing, and clean up after killed processes; raises StorageFailed."""
        self.path = path
        self._blocks = str(path / "blocks")
        self._counter = 0
        self._mutex = threading.Lock()
        try:
            for folder in (path, path / "blocks", path / "open", path / "pins"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_version()
        except OSError as error:
            raise storage_failed(error, path, "open the block store") from error
        remove_abandoned(path / "open")
        self._own = OwnedFolder.make(path / "open")

    def close(self) -> None:
        """Give up what this object has open; it cannot write any more."""
        self._own.remove()

    def read(self, cid: Cid) -> bytes | None:
        """The block, verified; None if it is not here (a corrupt one is removed and logged). Raises StorageFailed."""
        inside = identity_block(cid) if cid[2:4] != b"\x12\x20" else None
        if inside is not None:
            return inside
        path = self.path_of(cid)
        data = self._read_file(path)
        if data is None:
            return None
        try:
            verify_block(cid, data)
        except BlockMismatch:
            return self._set_aside(cid, path)
        return data

    def read_many(self, cids: Sequence[Cid], *, verify: bool = True) -> list[bytes | None]:
        """The blocks, each as ``read`` gives it. Without ``verify`` they are not hashed: for who holds what comes of them to another digest."""
        if verify:
            return [self.read(cid) for cid in cids]
        return [inside if (inside := identity_block(cid)) is not None else self._read_file(self.path_of(cid)) for cid in cids]

    def has(self, cid: Cid) -> bool:
        """Whether the block is here, without reading it."""
        return self.size(cid) is not None

    def size(self, cid: Cid) -> int | None:
        """The block's length in bytes, None if it is not here."""
        inside = identity_block(cid) if cid[2:4] != b"\x12\x20" else None
        if inside is not None:
            return len(inside)
        path = self.path_of(cid)
        try:
            size = os.stat(path).st_size  # noqa: PTH116 (twice as fast as a Path, and called for every block of a push)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_failed(error, path, "look for a block") from error
        # A file that a power cut left without its data has length 0 (ext4, XFS: the size is set when the data is written).
        return size if size or cid in _EMPTY_FILES else None

    def write(self, cid: Cid, data: bytes) -> bool:
        """Store a verified block, without waiting for the disk; whether it is new. Raises StorageFailed."""
        if self.size(cid) == len(data):
            return False
        with self._mutex:
            self._counter += 1
            name = str(self._counter)
        temporary = str(self._own.path / name)
        write_file(temporary, data, cid)
        self.adopt(temporary, self.path_of(cid))
        return True

    def adopt(self, temporary: str, path: str) -> None:
        """Give a complete file its place (see ``path_of``); raises StorageFailed, and then the file is gone."""
        try:
            try:
                os.rename(temporary, path)  # noqa: PTH104
            except FileNotFoundError:
                Path(path).parent.mkdir(mode=0o700, exist_ok=True)
                os.rename(temporary, path)  # noqa: PTH104
        except OSError as error:
            Path(temporary).unlink(missing_ok=True)
            raise storage_failed(error, path, "store a block") from error

    def delete(self, cid: Cid) -> int:
        """Forget a block; its length, or 0 if it was not here. Raises StorageFailed."""
        path = self.path_of(cid)
        try:
            size = os.stat(path).st_size  # noqa: PTH116
            os.unlink(path)  # noqa: PTH108
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise storage_failed(error, path, "delete a block") from error
        return size

    def shards(self) -> list[str]:
        """The folders that blocks lie in."""
        try:
            return sorted(entry.name for entry in Path(self._blocks).iterdir())
        except OSError as error:
            raise storage_failed(error, self._blocks, "list the blocks") from error

    def shard(self, name: str) -> Iterator[tuple[Cid, int]]:
        """The blocks of one shard, with their lengths in bytes."""
        folder = f"{self._blocks}/{name}"
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    try:
                        cid = cid_of_name(entry.name)
                        size = entry.stat().st_size
                    except FileNotFoundError:
                        continue
                    except InvalidCid:
                        _log.warning("%s/%s is no block of ours; it is left alone", folder, entry.name)
                        continue
                    if size or cid in _EMPTY_FILES:
                        yield cid, size
        except FileNotFoundError:
            return
        except OSError as error:
            raise storage_failed(error, folder, "list the blocks") from error

    def stats(self) -> StoreStats:
        """Count everything: reads every folder, so it takes about 2 s for a million blocks."""
        blocks = size = 0
        for name in self.shards():
            for _, length in self.shard(name):
                blocks += 1
                size += length
        return StoreStats(blocks, size)

    def open_disk(self) -> int:
        """A descriptor for ``sync``, which tells of the writes that failed since it was opened; raises StorageFailed."""
        try:
            return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise storage_failed(error, self.path, "open the block store") from error

    def sync(self, disk: int) -> None:
        """Return when all that was written before is on the disk; raises StorageFailed.

        One syncfs instead of an fsync per file: on ext4 each fsync commits the journal, which costs milliseconds, and an
        image has thousands of blocks. It also waits for what other programs wrote to this file system.
        """
        if _libc.syncfs(disk) != 0:
            code = ctypes.get_errno()
            raise storage_failed(OSError(code, os.strerror(code)), self.path, "write the blocks to the disk")

    def path_of(self, cid: Cid) -> str:
        """Where the block's file is or would be."""
        name = format_cid(cid)
        return f"{self._blocks}/{name[-3:-1]}/{name}"  # the last character has 3 bits only: 1,024 shards, evenly filled

    def _read_file(self, path: str) -> bytes | None:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_failed(error, path, "read a block") from error
        try:
            data = os.read(handle, os.fstat(handle).st_size + 1)
        except OSError as error:
            raise storage_failed(error, path, "read a block") from error
        finally:
            os.close(handle)
        return data

    def _set_aside(self, cid: Cid, path: str) -> bytes | None:
        # Another process may have put a good file there since we read: look again, with nobody else at it.
        with locked(self.path / "lock", exclusive=True):
            data = self._read_file(path)
            if data is None:
                return None
            try:
                verify_block(cid, data)
            except BlockMismatch:
                _log.error("%s: the block of %d bytes does not match its CID (a torn write or a bad disk); it is removed", path, len(data))
                self.delete(cid)
                return None
        return data

    def _check_version(self) -> None:
        path = self.path / "version"
        if not path.exists():
            path.write_text(_VERSION + "\n")
        elif (found := path.read_text().strip()) not in (_VERSION, ""):
            raise StorageFailed(
                f"{self.path}: this block store has format {found[:20]!r}; this program knows format {_VERSION}",
                hint="use the version of ipfs-store that made it, or another folder with IPFS_STORE_PATH",
            )


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


def remove_abandoned(parent: Path) -> None:
    """Delete the folders under ``parent`` whose owners are gone."""
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
        finally:
            os.close(handle)


def write_file(path: str, data: bytes, cid: Cid) -> None:
    """Write a new file whole, or not at all; raises StorageFailed, naming the path."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, stat.S_IRUSR | stat.S_IWUSR)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(handle, rest) :]
        finally:
            os.close(handle)
    except OSError as error:
        Path(path).unlink(missing_ok=True)
        raise storage_failed(error, path, f"write block {format_cid(cid)}") from error


def cid_of_name(name: str) -> Cid:
    """The CID that a file's name writes; raises InvalidCid."""
    try:
        raw = base64.b32decode(name[1:].upper() + "=" * (-len(name[1:]) % 8))
    except (binascii.Error, ValueError) as error:
        raise InvalidCid(f"{name[:100]!r} is not a CID") from error
    cid = validate_cid(raw)
    if format_cid(cid) != name:
        raise InvalidCid(f"{name[:100]!r} is not a CID as we write it")
    return cid
