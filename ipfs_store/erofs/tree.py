"""The tree that an image is written from."""

from __future__ import annotations

import stat
from collections.abc import Mapping

import msgspec

from ipfs_store.errors import InvalidInput

NAME_MAX = 255
LINK_MAX = 4095


class InvalidTree(InvalidInput):
    """A tree that no Linux file system could hold."""


class Inode(msgspec.Struct, eq=False, gc=False):
    """One inode. A hard link is the same object under two names; a regular file has a size and no data (its blocks are holes)."""

    mode: int
    """Type and permission bits, as ``st_mode``."""
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    """Seconds since the epoch; may be negative."""
    mtime_ns: int = 0
    size: int = 0
    """Bytes of a regular file; the writer sets it for directories and symbolic links."""
    rdev: tuple[int, int] = (0, 0)
    """Major and minor number of a device."""
    link: bytes = b""
    """Target of a symbolic link."""
    xattrs: Mapping[bytes, bytes] = msgspec.field(default_factory=dict)
    """Full names, such as ``b"trusted.overlay.opaque"``."""
    redirect: bytes = b""
    """Regular file: where overlayfs finds its data in a data-only layer, such as ``b"/ab/abcd"``; it becomes ``trusted.overlay.metacopy`` and
    ``trusted.overlay.redirect`` (filesystems/overlayfs.rst, "Data-only lower layers"), which ``xattrs`` then must not have."""
    children: dict[bytes, Inode] | None = None
    """Names and inodes of a directory; None for everything else."""

    number: int = -1
    """The writer's own, while it writes."""

    @property
    def kind(self) -> int:
        """The type bits of the mode."""
        return stat.S_IFMT(self.mode)


def is_sound(inode: Inode) -> bool:
    """Whether every field is inside of what the kernel takes; `fault` tells which is not."""
    kind = inode.mode & 0o170000
    return (
        kind in _KINDS
        and (inode.children is not None) == (kind == stat.S_IFDIR)
        and (kind != stat.S_IFLNK or 0 < len(inode.link) <= LINK_MAX)
        and 0 <= inode.uid < 1 << 32
        and 0 <= inode.gid < 1 << 32
        and 0 <= inode.mtime_ns < 10**9
        and 0 <= inode.size < 1 << 63
        and (inode.rdev == _NO_DEVICE or (0 <= inode.rdev[0] < 1 << 12 and 0 <= inode.rdev[1] < 1 << 20))
        and -(1 << 63) <= inode.mtime < 1 << 63
        and (not inode.redirect or kind == stat.S_IFREG)
    )


def fault(inode: Inode, name: bytes) -> InvalidTree:
    """What is wrong with the inode that is called ``name``."""
    shown = repr(name.decode(errors="backslashreplace")[:80])
    if inode.kind not in _KINDS:
        return InvalidTree(f"{shown}: mode {inode.mode:o} has no file type")
    if (inode.children is not None) != (inode.kind == stat.S_IFDIR):
        return InvalidTree(f"{shown}: children belong to directories, and only to them")
    if inode.kind == stat.S_IFLNK and not 0 < len(inode.link) <= LINK_MAX:
        return InvalidTree(f"{shown}: a symbolic link of {len(inode.link)} bytes (1 to {LINK_MAX} are possible)")
    for what, value, limit in (
        ("uid", inode.uid, 1 << 32),
        ("gid", inode.gid, 1 << 32),
        ("mtime_ns", inode.mtime_ns, 10**9),
        ("size", inode.size, 1 << 63),
        ("major number", inode.rdev[0], 1 << 12),
        ("minor number", inode.rdev[1], 1 << 20),
    ):
        if not 0 <= value < limit:
            return InvalidTree(f"{shown}: {what} is {value}, outside of 0 to {limit - 1}")
    if not -(1 << 63) <= inode.mtime < 1 << 63:
        return InvalidTree(f"{shown}: mtime is {inode.mtime}, which no file system can hold")
    return InvalidTree(f"{shown}: only regular files have their data elsewhere")


def not_a_name(name: bytes) -> InvalidTree:
    """The error for what cannot be the name of a directory entry: empty, ``.``, ``..``, over 255 bytes, with ``/`` or NUL."""
    return InvalidTree(f"{name[:80]!r} ({len(name)} bytes) cannot be the name of a file")


_NO_DEVICE = (0, 0)
_KINDS = {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK}
