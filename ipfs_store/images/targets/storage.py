"""Files that appear whole or not at all, each in place of what has its name. Synchronous, for worker threads."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import trio

from ipfs_store.errors import BlobMismatch, StorageFailed
from ipfs_store.images.sources.scratch import PIECE, Scratch, check_file, copy_bytes
from ipfs_store.oci import Descriptor

_NO_LINK = frozenset({errno.EXDEV, errno.ENOENT, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EMLINK, errno.EINVAL})


def failed(error: OSError, path: Path) -> StorageFailed:
    """``error`` while writing ``path``, as one line."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return StorageFailed(f"{path}: cannot be written: {error.strerror or error}", hint="free some space there" if full else None)


def publish(file: Scratch, path: Path) -> None:
    """Give what is in ``file`` the name ``path``, on the disk before it can be seen; raises OSError, StorageFailed."""
    file.flush()
    os.fchmod(file.file.fileno(), 0o666 & ~_umask())
    os.fsync(file.file.fileno())
    _named(path, lambda name: None if _link(file.path, name) else _copy(file.path, name))


def write_small(path: Path, data: bytes) -> None:
    """A document; raises OSError."""

    def write(name: Path) -> None:
        with name.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    _named(path, write)


def keep_blob(source: Path, path: Path, *, given: bool) -> None:
    """``source`` under the name ``path``: as another link to it where it is ``given``, else copied; raises OSError."""

    def write(name: Path) -> None:
        if given and _link(source, name):
            name.chmod(0o666 & ~_umask())
            with name.open("rb") as file:
                os.fsync(file.fileno())
        else:
            _copy(source, name)

    _named(path, write)


def is_whole(path: Path, blob: Descriptor) -> bool:
    """Whether the file is there and has the blob's digest; what is damaged is written again."""
    try:
        check_file(path, blob, str(path))
    except (FileNotFoundError, BlobMismatch):
        return False
    return True


@contextlib.contextmanager
def opened_folder(path: Path) -> Iterator[int]:
    """A descriptor of the folder, synchronised at the end, so that new names in it are on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield handle
        os.fsync(handle)
    finally:
        os.close(handle)


def copy_into(source: Path, target: BinaryIO) -> None:
    """All of ``source`` to the end of ``target``, which may be a pipe; raises OSError."""
    with source.open("rb", buffering=0) as file:
        while piece := file.read(PIECE):
            trio.from_thread.check_cancelled()
            target.write(piece)


def _named(path: Path, write: Callable[[Path], object]) -> None:
    """Calls ``write`` with a name that nothing has, and makes it ``path``."""
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}")
    try:
        write(temporary)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _link(source: Path, path: Path) -> bool:
    """A second name for the file; False where the file system, or another one, does not allow it."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Python follows links (here: out of /proc, to a file that may have no name yet) only where a folder is given too.
        os.link(source, path.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        return False
    finally:
        os.close(folder)
    return True


def _copy(source: Path, path: Path) -> None:
    with source.open("rb", buffering=0) as file, path.open("xb", buffering=0) as target:
        copy_bytes(file.fileno(), target.fileno(), os.fstat(file.fileno()).st_size)
        os.fsync(target.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
