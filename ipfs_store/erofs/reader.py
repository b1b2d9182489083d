"""Reads back what `write_image` writes (erofs_fs.h): metadata images can be merged, and tested, without their sources or a kernel.

Of EROFS just that much: extended inodes, no data, no compression. The bytes are our own, read from our own disk; what does not fit together
is an error all the same.
"""

from __future__ import annotations

import stat
import struct

from ipfs_store.erofs.directories import BLOCK, DIRENT, TYPES
from ipfs_store.erofs.tree import Inode, InvalidTree
from ipfs_store.erofs.writer import INLINE, INODE, MAGIC, SUPERBLOCK
from ipfs_store.erofs.xattrs import METACOPY, REDIRECT, read_body

_SUPERBLOCK_AT = 1024
_KINDS = {number: kind for kind, number in TYPES.items()}


def read_image(image: bytes) -> Inode:
    """The tree of an image; raises InvalidTree."""
    try:
        return _Reader(image).root()
    except (struct.error, IndexError, KeyError, ValueError) as error:
        raise InvalidTree(f"a metadata image of {len(image)} bytes is damaged: {error}") from error


class _Reader:
    def __init__(self, image: bytes) -> None:
        fields = SUPERBLOCK.unpack_from(image, _SUPERBLOCK_AT)
        if fields[0] != MAGIC:
            raise InvalidTree("this is no EROFS image")
        self._image = image
        self._root = fields[5]
        self._xattr_block = fields[11]
        self._known: dict[int, Inode] = {}

    def root(self) -> Inode:
        top = self._inode(self._root)
        waiting = [(self._root, top)]
        while waiting:
            nid, folder = waiting.pop()
            assert folder.children is not None
            for name, child_nid in self._entries(nid):
                child = self._known.get(child_nid)
                if child is None:
                    child = self._inode(child_nid)
                    if child.children is not None:
                        waiting.append((child_nid, child))
                folder.children[name] = child
        return top

    def _inode(self, nid: int) -> Inode:
        at = nid * 32
        layout, count, mode, _, size, union, _, uid, gid, mtime, mtime_ns, _ = INODE.unpack_from(self._image, at)
        kind = stat.S_IFMT(mode)
        inode = Inode(mode, uid, gid, mtime, mtime_ns)
        if count:
            xattrs = read_body(self._image[at + 64 : at + 64 + self._xattr_size(count)], self._image, self._xattr_block * BLOCK)
            inode.redirect = xattrs.pop(REDIRECT, b"")
            xattrs.pop(METACOPY, None)
            inode.xattrs = xattrs
        if kind == stat.S_IFREG:
            inode.size = size
        elif kind == stat.S_IFDIR:
            inode.children = {}
        elif kind == stat.S_IFLNK:
            inode.link = self._data(at, layout, count, size, union)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            inode.rdev = union >> 8 & 0xFFF, union & 0xFF | union >> 12 & 0xFFF00
        self._known[nid] = inode
        return inode

    def _entries(self, nid: int) -> list[tuple[bytes, int]]:
        at = nid * 32
        layout, count, _, _, size, union, *_ = INODE.unpack_from(self._image, at)
        data = self._data(at, layout, count, size, union)
        found = []
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            heads = [DIRENT.unpack_from(block, 12 * number) for number in range(DIRENT.unpack_from(block)[1] // 12)]
            ends = [head[1] for head in heads[1:]] + [len(block)]
            for (child, begin, _, _), end in zip(heads, ends, strict=True):
                name = block[begin:end].rstrip(b"\0")
                if name not in (b".", b".."):
                    found.append((name, child))
        return found

    def _data(self, at: int, layout: int, count: int, size: int, union: int) -> bytes:
        start = at + 64 + self._xattr_size(count) if layout >> 1 == INLINE else union * BLOCK
        data = self._image[start : start + size]
        if len(data) != size:
            raise InvalidTree(f"a metadata image ends inside of {size} bytes at {start}")
        return data

    def _xattr_size(self, count: int) -> int:
        return 12 + 4 * (count - 1) if count else 0
