"""Lays out and encodes an EROFS image (Linux: Documentation/filesystems/erofs.rst, fs/erofs/erofs_fs.h).

The superblock is at byte 1024. An inode's number (nid) is its byte offset divided by 32, since the metadata area starts at block 0
here. All inodes are extended (64 bytes); extended attributes follow, then inline data, which must not cross a block. A regular file is a
chunk-based file whose chunks are holes: its data comes from elsewhere.
"""

from __future__ import annotations

import hashlib
import stat
import struct
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from ipfs_store.erofs.directories import BLOCK, Listing, sorted_names
from ipfs_store.erofs.tree import Inode, InvalidTree, fault, is_sound
from ipfs_store.erofs.xattrs import SharedXattrs, before_redirect

_FIRST_INODE = 2048
MAGIC = 0xE0F5E1E2
_CHUNKED_FILE = 0x4  # feature_incompat
_PLAIN, INLINE, _CHUNKED = 0, 2, 4
_MAX_CHUNK_BITS = 31  # 5 bits for log2(chunk size / block size): a chunk is at most 8 TiB
_ONE_CHUNK = BLOCK << _MAX_CHUNK_BITS
_HOLE = b"\xff\xff\xff\xff"
# Over this size a directory or link goes into a block of its own: inline, it would push inodes apart to stay inside one block.
_MAX_INLINE = BLOCK // 2
INODE = struct.Struct("<HHHHQIIIIqII16x")
SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ")
_OTHER_LENGTH = "a redirect has another length than when its place was given out"
_SEEN = -2
"""An inode's number when a name of it was found, and its place was not given out."""


def write_image(root: Inode, redirect: Callable[[], object] = lambda: None) -> bytes:
    """The image of the tree under ``root``; the same tree gives the same bytes. Raises InvalidTree.

    Half of the work needs just the lengths of files' redirects. ``redirect`` is called behind it, and may give them others of the same length.
    Takes about 3 µs and 230 bytes an entry; all of it is in memory.
    """
    layout = _Layout()
    try:
        layout.collect(root)
        layout.place()
        redirect()
        return bytes(layout.encode())
    finally:
        layout.clear()


class _Form(NamedTuple):
    """How a regular file is written that has nothing but a redirect of some length, as nearly all do."""

    length: int
    """Of the redirect."""
    struct: struct.Struct
    """All of it: inode, attributes, the redirect, the one chunk."""
    before: bytes
    """What the attributes have before the redirect."""
    units: int
    """Size of the attributes, as the inode has it."""
    slot: int
    """Bytes that it takes."""


@cache
def _form(length: int) -> _Form:
    before = before_redirect(length)
    padding = -(len(before) + length) % 4
    whole = struct.Struct(f"{INODE.format}{len(before)}s{length}s{padding}x4s")
    return _Form(length, whole, before, _count(len(before) + length + padding), whole.size + -whole.size % 32)


class _Layout:
    """What goes where. Lists have an item for each inode, by its number: the order in the image."""

    def __init__(self) -> None:
        self.order: list[Inode] = []
        self.seen: list[Inode] = []
        self.nlink: list[int] = []
        self.at: list[int] = []
        """Offset."""
        self.forms: list[_Form | None] = []
        """None: it has `xattrs` and `tails`."""
        self.listings: dict[int, Listing] = {}
        self.xattrs: dict[int, bytes] = {}
        self.tails: dict[int, int] = {}
        """Bytes of inline data."""
        self.end = 0
        self.shared = SharedXattrs(())

    def clear(self) -> None:
        """Leave the tree as it was."""
        for inode in self.seen:
            inode.number = -1

    def collect(self, root: Inode) -> None:
        """Every inode once, in depth-first order of names (so that neighbours lie together)."""
        order, nlink = self.order, self.nlink
        names: dict[Inode, int] = {}
        """Names that an inode has besides the first."""
        self.seen.append(root)
        root.number = _SEEN
        waiting: list[tuple[Inode, Iterator[Inode]]] = [(root, iter((root,)))]
        while waiting:
            parent, siblings = waiting[-1]
            for inode in siblings:
                inode.number = len(order)
                order.append(inode)
                nlink.append(1)
                if inode.children is not None:
                    waiting.append((inode, iter(self._open(inode, parent, names))))
                    break
            else:
                waiting.pop()
        for inode, more in names.items():
            nlink[inode.number] += more

    def _open(self, folder: Inode, parent: Inode, more: dict[Inode, int]) -> list[Inode]:
        """List the directory; what is in it and was not met before."""
        assert folder.children is not None
        names = sorted_names(folder.children)
        inodes = list(map(folder.children.__getitem__, names))
        self.listings[folder.number] = Listing(names, inodes, folder, parent)
        new = []
        self.nlink[folder.number] = 2
        for name, inode in zip(names, inodes, strict=True):
            if inode.number == -1:
                inode.number = _SEEN
                new.append(inode)
                if inode.children is not None:
                    self.nlink[folder.number] += 1
            elif inode.children is not None:
                raise InvalidTree(f"{name[:80]!r} is a directory with a second name")
            else:
                more[inode] = more.get(inode, 0) + 1
        self.seen += new
        return new

    def place(self) -> None:
        """Give every inode its offset."""
        self.shared = shared = SharedXattrs(inode.xattrs for inode in self.order)
        position = _FIRST_INODE
        at, forms = self.at, self.forms
        for number, inode in enumerate(self.order):
            if (
                inode.redirect
                and not inode.xattrs
                and 0 < inode.size <= _ONE_CHUNK
                and inode.mode & 0o170000 == stat.S_IFREG
                and inode.children is None
                and 0 <= inode.mtime_ns < 10**9  # the rest is checked when it is packed
            ):
                form = _form(len(inode.redirect))
                forms.append(form)
                at.append(position)
                position += form.slot
                continue
            if not is_sound(inode):
                raise self._fault(inode)
            forms.append(None)
            xattrs = self.xattrs[number] = shared.body(inode.xattrs, inode.redirect) if inode.xattrs or inode.redirect else b""
            size, tail, regular = 64 + len(xattrs), 0, inode.mode & 0o170000 == stat.S_IFREG
            if regular:
                if inode.size:
                    tail = 4 * _chunks(inode.size)[1]
            elif inode.children is not None:
                listing = self.listings[number]
                tail = listing.size if listing.blocks == 1 else 0
            else:
                tail = len(inode.link)
            if tail > _MAX_INLINE and not regular:
                tail = 0
            if tail and (position + size) % BLOCK + tail > BLOCK and not regular:
                # Inline data may not cross a block: move the inode so that its data starts the next one, or fits into it.
                position += -(position + size) % BLOCK
                position += -position % 32
                if (position + size) % BLOCK + tail > BLOCK:
                    position += -position % BLOCK
            self.tails[number] = tail
            at.append(position)
            position += size + tail
            position += -position % 32
        self.end = position

    def encode(self) -> bytearray:
        """The image."""
        image = bytearray(-(-self.end // BLOCK) * BLOCK)
        area = self.shared.area
        xattr_block = len(image) // BLOCK if area else 0
        image += area
        image += bytes(-len(image) % BLOCK)
        for number, (inode, place, form, nlink) in enumerate(zip(self.order, self.at, self.forms, self.nlink, strict=True)):
            if form is None:
                self._encode(inode, number, image)
                continue
            size, to = inode.size, inode.redirect
            if len(to) != form.length:
                raise ValueError(_OTHER_LENGTH)
            try:
                form.struct.pack_into(
                    image, place, 1 | _CHUNKED << 1, form.units, inode.mode, 0, size, (size - 1).bit_length() - 12 if size > BLOCK else 0,
                    number + 1, inode.uid, inode.gid, inode.mtime, inode.mtime_ns, nlink, form.before, to, _HOLE,
                )  # fmt: skip
            except struct.error:
                raise self._fault(inode) from None
        # A UUID of its own: overlayfs finds the file that a changed one came from, and so its inode number, in no layer that shares its UUID.
        SUPERBLOCK.pack_into(
            image, 1024, MAGIC, 0, 0, 12, 0, self.at[0] // 32, len(self.order), 0, 0, len(image) // BLOCK, 0,
            xattr_block, hashlib.sha256(image).digest()[:16], bytes(16), _CHUNKED_FILE, 0, 0, 0, 0, 0, 0, 0,
        )  # fmt: skip
        return image

    def _fault(self, inode: Inode) -> InvalidTree:
        names = (listing.name_of(inode) for listing in reversed(self.listings.values()))
        return fault(inode, next(filter(None, names), b"/"))

    def _encode(self, inode: Inode, number: int, image: bytearray) -> None:
        xattrs, tail = self.xattrs[number], self.tails[number]
        if inode.redirect:
            xattrs = self.shared.body(inode.xattrs, inode.redirect)
            if len(xattrs) != len(self.xattrs[number]):
                raise ValueError(_OTHER_LENGTH)
        form, union, size, data = _PLAIN, 0, inode.size, b""
        if inode.mode & 0o170000 == stat.S_IFREG:
            if size:
                form, union, data = _CHUNKED, _chunks(size)[0], _HOLE * (tail // 4)
        elif inode.children is not None:
            listing = self.listings[number]
            size, data = listing.size, listing.encode(self.at)
            if tail:
                form = INLINE
            else:
                union, data = _append(image, data), b""
        elif inode.link:
            size = len(inode.link)
            if tail:
                form, data = INLINE, inode.link
            else:
                union = _append(image, inode.link)
        else:
            size = 0
            if inode.kind in (stat.S_IFCHR, stat.S_IFBLK):
                major, minor = inode.rdev
                union = (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)
        place = self.at[number]
        INODE.pack_into(
            image, place, 1 | form << 1, _count(len(xattrs)), inode.mode, 0, size, union, number + 1, inode.uid,
            inode.gid, inode.mtime, inode.mtime_ns, self.nlink[number],
        )  # fmt: skip
        place += 64
        body = xattrs + data
        image[place : place + len(body)] = body


def _count(size: int) -> int:
    """``i_xattr_icount`` of attributes that take ``size`` bytes."""
    return (size - 12) // 4 + 1 if size else 0


def _chunks(size: int) -> tuple[int, int]:
    """(log2 of the chunk size in blocks, number of chunks) of a file that is one hole, or a few beyond 8 TiB."""
    if size <= _ONE_CHUNK:
        return (size - 1).bit_length() - 12 if size > BLOCK else 0, 1
    return _MAX_CHUNK_BITS, -(-size // _ONE_CHUNK)


def _append(image: bytearray, data: bytes) -> int:
    block = len(image) // BLOCK
    image += data
    image += bytes(-len(data) % BLOCK)
    return block
