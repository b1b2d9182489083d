"""Files of a snapshot that are needed before its container is there."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ipfs_store.errors import IpfsStoreError, StorageFailed
from snapshotter.containerd.protos import mount_pb2

_SYS_OPENAT2 = 437  # the same number on every architecture (Linux 5.6)
_RESOLVE_IN_ROOT = 0x10
_MAX = 1 << 20


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@contextmanager
def mounted(mounts: Sequence[mount_pb2.Mount]) -> Iterator[Path]:
    """The snapshot's root while the context lasts; raises StorageFailed if it cannot be mounted."""
    with tempfile.TemporaryDirectory(prefix="ipfs-store-root-") as folder:
        done = 0
        try:
            for mount in mounts:
                kind = [] if mount.type == "bind" else ["-t", mount.type]
                command = ["mount", *kind, "-o", ",".join(mount.options) or "rw", mount.source, folder]
                result = subprocess.run(command, capture_output=True, text=True, check=False)
                if result.returncode:
                    raise StorageFailed(f"cannot mount the image's root: {result.stderr.strip()}")
                done += 1
            yield Path(folder)
        finally:
            for _ in range(done):
                subprocess.run(["umount", folder], capture_output=True, check=True)


def read_in_root(root: Path, path: str) -> str:
    """The text of a file of the image, empty if it is not there; links lead nowhere outside of ``root``."""
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = _OpenHow(os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall.restype = ctypes.c_long
        file = int(libc.syscall(_SYS_OPENAT2, folder, path.encode(), ctypes.byref(how), ctypes.sizeof(how)))
        if file < 0:
            number = ctypes.get_errno()
            if number in (2, 20, 40):  # ENOENT, ENOTDIR, ELOOP
                return ""
            raise IpfsStoreError(f"cannot read /{path} of the image: {os.strerror(number)}")
    finally:
        os.close(folder)
    with os.fdopen(file, "rb") as opened:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return ""
        return opened.read(_MAX).decode(errors="replace")
