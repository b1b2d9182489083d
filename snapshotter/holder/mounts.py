"""The few calls of mount(2) that a FUSE connection needs."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_MS_RDONLY = 1
_MNT_FORCE = 1
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def mount_fuse(descriptor: int, mountpoint: Path) -> None:
    """Mount the new FUSE connection ``descriptor``, read-only; raises OSError.

    Device and set-id files count: what may be done with them is decided where layers are used (a container's overlay, a view's bind mount),
    as for unpacked layers. Nobody but root comes here.
    """
    options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    _check(_libc.mount(b"ipfs", os.fsencode(mountpoint), b"fuse.ipfs-layers", _MS_RDONLY, options.encode()), mountpoint)


def end_mount(mountpoint: Path) -> None:
    """End the FUSE connection mounted on ``mountpoint`` (whoever waits for it gets an error) and detach the mount; raises OSError."""
    _check(_libc.umount2(os.fsencode(mountpoint), _MNT_FORCE | _MNT_DETACH), mountpoint)


def _check(result: int, path: Path) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
