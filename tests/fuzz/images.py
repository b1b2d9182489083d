"""EROFS images: written from any tree, read back by a reader of the test's own."""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator

from ipfs_store.erofs import Inode, write_image
from tests.fuzz.choices import Choices

_INODE = struct.Struct("<HHHHQIIIIQII")
_KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, 0)
Seen = dict[bytes, tuple[int, int, int, int, int, int, bytes]]


def erofs(data: bytes) -> None:
    """Whatever tree the bytes make is refused, or is in the image as it was."""
    given = Choices(data)
    root = Inode(stat.S_IFDIR | 0o755, children={})
    folders, files = [root], [Inode(stat.S_IFREG)]
    while given:
        _grow(given, folders, files)
    image = write_image(root)
    assert len(image) % 4096 == 0 and write_image(root) == image
    assert _read(image) == _expected(root)


def erofs_seeds() -> Iterator[bytes]:
    yield bytes(range(256)) * 2
    yield bytes((31 * number) % 256 for number in range(3000))
    yield b"\0\1a\0\0\0" * 400


def _grow(given: Choices, folders: list[Inode], files: list[Inode]) -> None:
    flags = given.byte()
    folder = given.one(folders)
    name = given.name().encode("utf-8", "surrogatepass").replace(b"/", b"") if flags & 1 else b"%d" % given.byte()
    assert folder.children is not None
    if flags & 2:
        folder.children[name] = given.one(files)
        return
    kind = given.one(_KINDS)
    inode = Inode(
        kind | given.below(0o10000),
        uid=given.number() if flags & 4 else 0,
        gid=given.byte(),
        mtime=given.number() if flags & 8 else 1,
        mtime_ns=given.number() if flags & 16 else 0,
        size=(given.number() if flags & 32 else given.byte()) if kind == stat.S_IFREG else 0,
        rdev=(given.number(), given.number()) if kind in (stat.S_IFCHR, stat.S_IFBLK) else (0, 0),
        link=b"l" * given.below(4200) if kind == stat.S_IFLNK else b"",
        children={} if kind == stat.S_IFDIR else None,
        xattrs={given.one((b"user.", b"trusted.", b"security.", b"x.")) + b"a" * given.below(300): b"v" * given.byte()}
        if flags & 64
        else {},
    )
    folder.children[name] = inode
    if inode.children is not None:
        folders.append(inode)
    elif len(files) < 200:
        files.append(inode)


def _expected(root: Inode) -> Seen:
    seen: Seen = {}
    stack = [(b"", root)]
    while stack:
        path, inode = stack.pop()
        size = inode.size if inode.kind == stat.S_IFREG else 0
        seen[path] = (inode.mode, inode.uid, inode.gid, inode.mtime, inode.mtime_ns, size, inode.link)
        stack += [(path + b"/" + name, child) for name, child in (inode.children or {}).items()]
    return seen


def _read(image: bytes) -> Seen:
    magic, root = struct.unpack_from("<I10xH", image, 1024)
    assert magic == 0xE0F5E1E2
    seen: Seen = {}
    stack = [(b"", root)]
    while stack:
        path, number = stack.pop()
        at = number * 32
        layout, xattrs, mode, _, size, where, _, uid, gid, mtime, nanoseconds, _ = _INODE.unpack_from(image, at)
        assert layout & 1, "an inode that is not extended"
        inline = at + 64 + (12 + 4 * (xattrs - 1) if xattrs else 0)
        kind, data = stat.S_IFMT(mode), b""
        if kind in (stat.S_IFDIR, stat.S_IFLNK):
            begin = where * 4096 if layout >> 1 == 0 else inline
            data = image[begin : begin + size]
            assert len(data) == size
        seen[path] = (
            mode, uid, gid, mtime - (1 << 64) * (mtime >> 63), nanoseconds, size if kind == stat.S_IFREG else 0, data if kind == stat.S_IFLNK else b"",
        )  # fmt: skip
        if kind == stat.S_IFDIR:
            stack += [(path + b"/" + name, child) for name, child in _entries(data) if name not in (b".", b"..")]
    return seen


def _entries(data: bytes) -> Iterator[tuple[bytes, int]]:
    last = b""
    for begin in range(0, len(data), 4096):
        block = data[begin : begin + 4096]
        count = struct.unpack_from("<H", block, 8)[0] // 12
        for number in range(count):
            child, offset, _, _ = struct.unpack_from("<QHBB", block, 12 * number)
            end = struct.unpack_from("<H", block, 12 * number + 20)[0] if number + 1 < count else len(block)
            name = block[offset:end].rstrip(b"\0")
            assert name > last, "names out of order"
            last = name
            yield name, child
