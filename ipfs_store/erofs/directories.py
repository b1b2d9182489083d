"""Directories in EROFS: runs of blocks, each of 12-byte entries and the names behind them, sorted (erofs_fs.h, ``erofs_dirent``)."""

from __future__ import annotations

import stat
import struct
from collections.abc import Sequence
from itertools import accumulate

from ipfs_store.erofs.tree import NAME_MAX, Inode, not_a_name

BLOCK = 4096
DIRENT = struct.Struct("<QHBB")
_DIRENT_SIZE = 12
TYPES = {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFCHR: 3, stat.S_IFBLK: 4, stat.S_IFIFO: 5, stat.S_IFSOCK: 6, stat.S_IFLNK: 7}
_TYPE_BITS = {kind: number << 16 for kind, number in TYPES.items()}


def sorted_names(children: dict[bytes, Inode]) -> list[bytes]:
    """The names of a directory in order; raises InvalidTree for one that no file can have."""
    names = sorted(children)
    text = b"/".join(names)
    # All in one text: this is done for every name. An empty one can be but the first.
    if names and (
        text.count(b"/") != len(names) - 1
        or b"\0" in text
        or not names[0]
        or b"." in children
        or b".." in children
        or max(map(len, names)) > NAME_MAX
    ):
        for name in names:
            if name in (b"", b".", b"..") or len(name) > NAME_MAX or b"/" in name or b"\0" in name:
                raise not_a_name(name)
    return names


class Listing:
    """A directory's entries, split into blocks."""

    def __init__(self, names: list[bytes], inodes: list[Inode], folder: Inode, parent: Inode) -> None:
        """``names``: sorted, without ``.`` and ``..``; ``inodes``: theirs."""
        names = [b".", b"..", *names]
        inodes = [folder, parent, *inodes]
        if len(names) > 2 and names[2] < b"..":  # names that begin with a space to a comma, or with ".-"
            order = sorted(range(len(names)), key=names.__getitem__)
            names, inodes = [names[at] for at in order], [inodes[at] for at in order]
        self._names = names
        self._inodes = inodes
        self._starts = [0]
        """Of each block, the number of its first entry."""
        used = _DIRENT_SIZE * len(names) + sum(map(len, names))
        if used > BLOCK:
            used = 0
            for number, name in enumerate(names):
                need = _DIRENT_SIZE + len(name)
                if used + need > BLOCK:
                    self._starts.append(number)
                    used = 0
                used += need
        self.size = (len(self._starts) - 1) * BLOCK + used
        """Bytes: whole blocks, and what the last one has."""

    def name_of(self, inode: Inode) -> bytes:
        """A name that the inode has here, or nothing."""
        return self._names[self._inodes.index(inode)] if inode in self._inodes else b""

    @property
    def blocks(self) -> int:
        """How many."""
        return len(self._starts)

    def encode(self, at: Sequence[int]) -> bytes:
        """The blocks, the last one not padded. ``at``: the offset of each inode in the image, by its number."""
        if len(self._starts) == 1:
            return _block(self._names, self._inodes, at)
        ends = [*self._starts[1:], len(self._names)]
        blocks = [_block(self._names[start:end], self._inodes[start:end], at) for start, end in zip(self._starts, ends, strict=True)]
        return b"".join([block.ljust(BLOCK, b"\0") for block in blocks[:-1]]) + blocks[-1]


def _block(names: list[bytes], inodes: list[Inode], at: Sequence[int]) -> bytes:
    count = len(names)
    # nid (8 bytes, of which the upper half is 0), offset of the name, type: as three numbers of four bytes each.
    fields = [0] * (3 * count)
    fields[0::3] = [at[inode.number] // 32 for inode in inodes]
    offsets = accumulate(map(len, names), initial=_DIRENT_SIZE * count)
    fields[2::3] = [offset | _TYPE_BITS[inode.mode & 0o170000] for inode, offset in zip(inodes, offsets)]  # noqa: B905 - the end is one more
    return struct.pack(f"<{3 * count}I", *fields) + b"".join(names)
