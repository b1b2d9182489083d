"""fs-verity (kernel: filesystems/fsverity.rst): every page of a sealed file is checked against a tree of hashes when it comes from the disk.

A bit that flips is an I/O error for whoever reads, not a wrong byte, and the kernel's log names the inode. Sealing writes the file's data to
the disk first, which costs as much as an fsync: so it is done behind a sync of all, not when a file is put. It works on ext4 with the feature
``verity``, Btrfs and F2FS, where the kernel has it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import struct
import tempfile
from pathlib import Path

# _IOW('f', 133, struct fsverity_enable_arg) and _IOR('f', 1, long) of 64-bit machines (x86, ARM, RISC-V).
_ENABLE, _GET_FLAGS = 0x40806685, 0x80086601
_VERITY_FLAG = 0x00100000
# version 1, SHA-256, blocks of 4 KiB; no salt, no signature.
_ARGUMENT = struct.pack("<IIIIQIIQ", 1, 1, 4096, 0, 0, 0, 0, 0).ljust(128, b"\0")
_LACKING = "kernel or file system lack it (ext4: tune2fs -O verity)"
_CORRUPTED = re.compile(rb"fs-verity \([^)]*, inode (\d+)\): FILE CORRUPTED")


def enable(file: int) -> None:
    """Seal an open file; raises OSError (ETXTBSY while somebody has it open for writing). One that is sealed stays so."""
    with contextlib.suppress(FileExistsError):
        fcntl.ioctl(file, _ENABLE, _ARGUMENT)


def is_sealed(file: int) -> bool:
    """Whether an open file is; raises OSError where the file system has no flags."""
    flags = fcntl.ioctl(file, _GET_FLAGS, bytes(8))
    return bool(struct.unpack("=ii", flags)[0] & _VERITY_FLAG)


def seal(path: Path) -> None:
    """`enable` for a file by path, if it is not sealed already; raises OSError."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if not is_sealed(file):
            enable(file)
    finally:
        os.close(file)


def why_not(folder: Path) -> str:
    """Why files in ``folder`` cannot be sealed, found out by sealing one; empty where they can."""
    try:
        handle, name = tempfile.mkstemp(prefix="verity-", dir=folder)
        try:
            try:
                os.write(handle, b"sealed")
            finally:
                os.close(handle)
            seal(Path(name))
        finally:
            os.unlink(name)  # noqa: PTH108 - a string
    except OSError as error:
        return _LACKING if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP) else error.strerror or str(error)
    return ""


def corrupted_inodes(records: bytes) -> list[int]:
    """The inodes that records of the kernel's log (/dev/kmsg) say are corrupted."""
    return [int(inode) for inode in _CORRUPTED.findall(records)]
