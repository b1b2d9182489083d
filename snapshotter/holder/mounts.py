"""The mount table, and the few calls of mount(2) that a FUSE connection needs."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

_MS_RDONLY = 1
_MNT_FORCE = 1
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class MountLine:
    """One line of /proc/self/mountinfo (proc(5))."""

    device: str
    """``major:minor``"""
    path: str
    kind: str


def mount_lines() -> list[MountLine]:
    """Everything that is mounted in our mount namespace, in the order of mounting."""
    lines = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        fields = before.split()
        path = fields[4].decode("unicode_escape").encode("latin-1").decode("utf-8", "surrogateescape")
        lines.append(MountLine(fields[2].decode(), path, after.split()[0].decode()))
    return lines


def mounts_at(path: Path) -> list[MountLine]:
    """What is mounted on ``path``, the lowest first. Never asks the mount itself, which may hang."""
    return [line for line in mount_lines() if line.path == str(path)]


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
