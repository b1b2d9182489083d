"""Files for a while, and the check of what is in a file. Synchronous, for worker threads; cancelled between pieces."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import trio

from ipfs_store.errors import BlobMismatch, StorageFailed
from ipfs_store.oci import Descriptor

PIECE = 4 << 20
_HASHED = 1 << 20  # bytes that stay in a processor's cache: 9 % less of it than with new pieces of 4 MiB
_NO_KERNEL_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF})


class Scratch:
    """A file without a name: however the process ends, nothing is left behind."""

    def __init__(self, folder: Path) -> None:
        """Make it in ``folder``; raises StorageFailed."""
        self._folder = folder
        try:
            self.file = _unnamed(folder)
        except OSError as error:
            raise storage_failed(error, folder) from error
        # Opened again by this path, it is the same file; /proc/self would be somebody else's in a worker process.
        self.path = Path(f"/proc/{os.getpid()}/fd/{self.file.fileno()}")

    def write(self, data: bytes | memoryview) -> None:
        """Append; raises StorageFailed."""
        try:
            self.file.write(data)
        except OSError as error:
            raise storage_failed(error, self._folder) from error

    def truncate(self) -> None:
        """Start again."""
        self.file.seek(0)
        self.file.truncate()

    def copy(self, source: int, offset: int, length: int) -> int:
        """Append ``length`` bytes of the descriptor ``source``; returns how many there were. Raises StorageFailed."""
        try:
            self.file.flush()
            return copy_bytes(source, self.file.fileno(), length, offset)
        except OSError as error:
            raise storage_failed(error, self._folder) from error

    def flush(self) -> None:
        """Make what was written visible at ``path``; raises StorageFailed."""
        try:
            self.file.flush()
        except OSError as error:
            raise storage_failed(error, self._folder) from error

    def close(self) -> None:
        """Give it up."""
        try:
            self.file.close()
        except OSError as error:  # what was not flushed does not fit; nobody wants it any more
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise


def _unnamed(folder: Path) -> BinaryIO:
    try:
        # As tempfile does, but for O_EXCL, which would keep the file from ever getting a name.
        handle = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):  # not every file system has such files
            raise
        return cast(BinaryIO, tempfile.TemporaryFile(dir=folder, prefix="ipfs-store-"))
    return os.fdopen(handle, "w+b")


@contextmanager
def scratch(folder: Path) -> Iterator[Scratch]:
    """A ``Scratch`` that is closed at the end."""
    made = Scratch(folder)
    try:
        yield made
    finally:
        made.close()


def copy_bytes(source: int, target: int, length: int, offset: int = 0) -> int:
    """Write ``length`` bytes of the descriptor ``source`` from ``offset`` to where ``target`` stands; returns how many there were."""
    done, kernel = 0, True
    while done < length:
        trio.from_thread.check_cancelled()
        count = min(PIECE, length - done)
        if kernel:
            try:  # shares blocks on file systems that can, and never brings the bytes into our memory
                copied = os.copy_file_range(source, target, count, offset + done)
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise
                kernel = False
                continue
        else:
            data = os.pread(source, count, offset + done)
            copied = len(data)
            view = memoryview(data)
            while view:
                view = view[os.write(target, view) :]
        if not copied:
            break
        done += copied
    return done


def storage_failed(error: OSError, folder: Path) -> StorageFailed:
    """``error`` while writing below ``folder``, as one line."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    hint = "the largest layer has to fit there; name another folder with TMPDIR" if full else "name another folder with TMPDIR"
    return StorageFailed(f"{folder}: cannot keep a layer there: {error.strerror or error}", hint=hint)


def check_file(path: Path, descriptor: Descriptor, where: str) -> None:
    """Read all of ``path``; raises BlobMismatch, whose message starts with ``where``."""
    size = path.stat().st_size
    if size != descriptor.size:
        raise BlobMismatch(f"{where}: blob {descriptor.digest} has {size} bytes, its descriptor says {descriptor.size}")
    hasher = hashlib.sha256()
    buffer = memoryview(bytearray(_HASHED))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            trio.from_thread.check_cancelled()
            hasher.update(buffer[:count])
    if hasher.hexdigest() != descriptor.digest.hex:
        raise BlobMismatch(f"{where}: blob {descriptor.digest} is damaged: its digest is sha256:{hasher.hexdigest()}")


def check_bytes(data: bytes, descriptor: Descriptor, where: str) -> bytes:
    """``data``; raises BlobMismatch, whose message starts with ``where``."""
    if len(data) != descriptor.size:
        raise BlobMismatch(f"{where}: blob {descriptor.digest} has {len(data)} bytes, its descriptor says {descriptor.size}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != descriptor.digest.hex:
        raise BlobMismatch(f"{where}: blob {descriptor.digest} is damaged: its digest is sha256:{digest}")
    return data
