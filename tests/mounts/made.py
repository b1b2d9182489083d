"""Metadata images of folders, and the data layer that they redirect to: what the data plane makes of a TOC, from what is on disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path

from ipfs_store.erofs import Inode, write_image


def image_of(tree: Path, contents: Path) -> bytes:
    """The image of everything below ``tree``; its files' contents are put into ``contents`` as ``aa/ID``."""
    return write_image(_inode(os.fsencode(tree), contents, {}))


def _inode(path: bytes, contents: Path, known: dict[int, Inode]) -> Inode:
    at = os.lstat(path)
    if at.st_ino in known:
        return known[at.st_ino]
    inode = Inode(
        at.st_mode, at.st_uid, at.st_gid, at.st_mtime_ns // 10**9, at.st_mtime_ns % 10**9,
        rdev=(os.major(at.st_rdev), os.minor(at.st_rdev)),
        xattrs={name.encode(): os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)},
    )  # fmt: skip
    if stat.S_ISDIR(at.st_mode):
        inode.children = {name: _inode(path + b"/" + name, contents, known) for name in sorted(os.listdir(path))}
        return inode
    if stat.S_ISLNK(at.st_mode):
        inode.link = os.readlink(path)
    elif stat.S_ISREG(at.st_mode):
        inode.size = at.st_size
        if at.st_size:
            with open(path, "rb") as file:
                name = hashlib.file_digest(file, "sha256").hexdigest()
            target = contents / name[:2] / name
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)
            redirect = f"/{name[:2]}/{name}".encode()
            inode.xattrs = {**inode.xattrs, b"trusted.overlay.metacopy": b"", b"trusted.overlay.redirect": redirect}
    if at.st_nlink > 1:
        known[at.st_ino] = inode
    return inode
