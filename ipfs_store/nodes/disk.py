"""What Python has no call for: writing out early, waiting for a whole file system, giving parts of a file back."""

from __future__ import annotations

import ctypes
import errno
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

_SYNC_FILE_RANGE_WRITE = 2
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # fallocate(2)
_PAGE = 4096


def sync_file_system(handle: int) -> None:
    """Return when all that was written to the file system of an open file is on the disk; raises OSError, also for a write that failed since
    the file was opened."""
    if _libc.syncfs(handle) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def start_writing(handle: int, offset: int, length: int) -> None:
    """Have the disk write a part of a file, without waiting for it. An error is not told here: it is for ``fdatasync`` to say."""
    _libc.sync_file_range(handle, offset, length, _SYNC_FILE_RANGE_WRITE)


def punch(handle: int, start: int, end: int) -> bool:
    """Give the whole pages between two offsets back to the file system; False where it cannot do that. Raises OSError.

    Nothing is written: bytes on pages that are only partly meant stay as they are.
    """
    start, end = -(-start // _PAGE) * _PAGE, end // _PAGE * _PAGE
    while start < end and _libc.fallocate(handle, _PUNCH_HOLE | _KEEP_SIZE, start, end - start) != 0:
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True
