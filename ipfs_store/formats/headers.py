"""Headers of tar entries: blocks of 512 bytes to values (POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block"; GNU tar).

Python's tarfile needs some 60 us an entry, three times what compressing a small file costs; this takes 8. The extensions in use are read:
pax (local and global), GNU's long names, numbers in base 256, GNU's and pax' sparse files.
"""

from __future__ import annotations

import functools
import struct
import zlib

import msgspec

from ipfs_store.errors import InvalidLayer
from ipfs_store.formats.toc import EntryType

BLOCK = 512
XATTR = "SCHILY.xattr."
"""Key of a pax record that is an extended attribute (star; image-spec, layer.md, "File Attributes")."""

PAX_LOCAL, PAX_GLOBAL, GNU_LONG_NAME, GNU_LONG_LINK, GNU_SPARSE = b"x", b"g", b"L", b"K", b"S"
EXTENSIONS = frozenset((PAX_LOCAL, PAX_GLOBAL, GNU_LONG_NAME, GNU_LONG_LINK))
_TYPES: dict[bytes, EntryType] = {
    b"0": "reg", b"\0": "reg", b"7": "reg", GNU_SPARSE: "reg", b"1": "hardlink", b"2": "symlink", b"3": "char", b"4": "block", b"5": "dir",
    b"6": "fifo",
}  # fmt: skip
_SPARSE_PIECE = frozenset(("GNU.sparse.offset", "GNU.sparse.numbytes"))
_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12s")
_USTAR, _GNU = b"ustar\0", b"ustar  \0"


class Header(msgspec.Struct, gc=False):
    """An entry of a tar, with extensions applied."""

    name: str
    """As it stands: ``./etc/``, undecodable bytes as surrogates."""
    type: EntryType
    raw: bytes
    """All its blocks, extensions of its own included."""
    mode: int
    """As it stands: some writers put the type's bits into it."""
    uid: int
    gid: int
    size: int
    """Bytes of the contents in the tar that follow."""
    mtime: int
    mtime_ns: int
    link: str
    uname: str
    gname: str
    dev_major: int
    dev_minor: int
    pax: dict[str, str]
    """Records of extended headers, global ones included."""
    flag: bytes
    """The type flag as it stands."""
    inherits: bool
    """Whether a global header has a part in this, so that ``raw`` alone says something else."""
    access_time: tuple[int, int] | None = None
    change_time: tuple[int, int] | None = None
    preceding: bytes = b""
    """Blocks of global headers in front of it, which are no entries of their own, with what stands before the last of them."""

    @property
    def xattrs(self) -> dict[str, bytes]:
        """Extended attributes."""
        return {
            key.removeprefix(XATTR): value.encode("utf-8", "surrogateescape") for key, value in self.pax.items() if key.startswith(XATTR)
        }


def extension(block: bytes) -> tuple[bytes, int] | None:
    """(type flag, bytes that follow) if ``block`` is an extended header, else None; raises InvalidLayer for what is no header at all."""
    check(block)
    flag = block[156:157]
    return (flag, number(block[124:136])) if flag in EXTENSIONS else None


def check(block: bytes) -> None:
    """Raises InvalidLayer unless the checksum of a header block is right (sums of unsigned bytes, or of signed ones as of old)."""
    field = block[148:156]
    try:
        # As nearly every tar has it; all others differ too much from entry to entry for what `number` remembers.
        stored = int(field[:6], 8) if field[6:] == b"\0 " and field[:6].isdigit() else number(field)
    except (InvalidLayer, ValueError) as error:
        raise InvalidLayer("no header of a tar entry") from error
    # Adler-32's lower half is one plus the sum modulo 65521: twenty times faster than sum().
    expected = (stored - 255 + sum(field)) % 65521
    if zlib.adler32(block) & 0xFFFF != expected and 256 + sum(struct.unpack("148b8x356b", block)) != stored:
        raise InvalidLayer("no header of a tar entry: its checksum is wrong")


def decode(block: bytes, raw: bytes, pax: dict[str, str], long_name: str, long_link: str, *, inherits: bool) -> Header:
    """The entry of which ``block`` is the main header. ``long_name`` and ``long_link`` are GNU's, empty if there are none; raises InvalidLayer."""
    name, mode, uid, gid, size, mtime, _, flag, link, magic, uname, gname, major, minor, prefix, _ = _FIELDS.unpack(block)
    text = _text(name)
    if magic[:6] == _USTAR and prefix[0]:
        text = f"{_text(prefix)}/{text}"
    text = long_name or text
    kind = _TYPES.get(flag)
    if kind is None:
        raise InvalidLayer(f"{text[:300]!r} is of type {flag!r} in the layer's tar, which is none that a layer can have")
    if flag == b"\0" and text.endswith("/"):
        kind = "dir"  # what tar had before POSIX
    known = magic[:5] == b"ustar"
    header = Header(
        text, kind, raw, number(mode), number(uid), number(gid), number(size), number(mtime), 0, long_link or (_text(link) if link[0] else ""),
        _name(uname) if known else "", _name(gname) if known else "", number(major) if known else 0, number(minor) if known else 0, pax, flag,
        inherits,
    )  # fmt: skip
    if magic == _GNU and prefix[0] | prefix[12]:
        try:
            header.access_time, header.change_time = _gnu_time(prefix[:12]), _gnu_time(prefix[12:24])
        except InvalidLayer:
            # Go before 1.8 wrote a prefix there, which the format does not have; Go reads it so to this day.
            header.name = f"{_text(prefix)}/{header.name}"
    if pax:
        _apply(header)
    if header.size < 0 or header.uid < 0 or header.gid < 0:
        raise InvalidLayer(f"{header.name[:300]!r} has a negative size or owner in the layer's tar")
    if kind != "reg":
        header.size = 0
    return header


def records(data: bytes) -> dict[str, str]:
    """Of a pax extended header's contents: lines ``length key=value`` (POSIX.1-2017, pax, "pax Extended Header"); raises InvalidLayer."""
    found: dict[str, str] = {}
    at, end = 0, len(data)
    while at < end and data[at]:
        space = data.find(b" ", at, at + 20)
        digits = data[at:space] if space > 0 else b""
        if not digits.isdigit():
            raise InvalidLayer("a pax header has a record without a length")
        following = at + int(digits)
        equals = data.find(b"=", space + 1, following)
        if following > end or following <= at or equals < 0 or data[following - 1] != 10:
            raise InvalidLayer("a pax header has a record that is not length, key and value")
        try:
            key = data[space + 1 : equals].decode()
        except UnicodeDecodeError as error:
            raise InvalidLayer("a pax header has a keyword that is no UTF-8") from error
        value = data[equals + 1 : following - 1].decode("utf-8", "surrogateescape")
        if key in _SPARSE_PIECE:  # the only keys that come more than once (GNU's sparse format 0.0)
            key, value = "GNU.sparse.map", f"{found['GNU.sparse.map']},{value}" if "GNU.sparse.map" in found else value
        found[key] = value
        at = following
    return found


@functools.lru_cache(4096)  # modes, owners and, as often, times are those of the entry before
def number(field: bytes) -> int:
    """A numeric field: octal digits, or base 256 where the first bit is set (GNU); raises InvalidLayer."""
    text = field.strip(b" \0")
    if text.isdigit():
        try:
            return int(text, 8)
        except ValueError as error:
            raise InvalidLayer(f"a tar header has {field!r} where a number should be") from error
    if not text:
        return 0
    if field[0] & 0x80:
        value = int.from_bytes(field, "big")
        # Two's complement over all bits but the mark, whose neighbour is the sign.
        return value - (1 << (8 * len(field))) if field[0] & 0x40 else value - (1 << (8 * len(field) - 1))
    raise InvalidLayer(f"a tar header has {field!r} where a number should be")


def time(text: str, name: str) -> tuple[int, int]:
    """Seconds and nanoseconds of a pax time, a decimal number; raises InvalidLayer."""
    whole, _, fraction = text.partition(".")
    if not (whole.removeprefix("-").isdigit() and whole.isascii() and (not fraction or (fraction.isdigit() and fraction.isascii()))):
        raise InvalidLayer(f"{name[:300]!r} has the time {text[:100]!r} in the layer's tar, which is none")
    if len(whole) > 20:
        raise InvalidLayer(f"{name[:300]!r} has the time {text[:100]!r} in the layer's tar, which no file can have")
    seconds, nanoseconds = int(whole), int(fraction[:9].ljust(9, "0")) if fraction else 0
    if whole[0] == "-" and nanoseconds:  # -1.5 is half a second before -1
        return seconds - 1, 1_000_000_000 - nanoseconds
    return seconds, nanoseconds


def _apply(header: Header) -> None:
    pax = header.pax
    name = header.name
    try:
        header.name = pax.get("path") or name
        header.link = pax.get("linkpath") or header.link
        header.uname = pax.get("uname") or header.uname
        header.gname = pax.get("gname") or header.gname
        if text := pax.get("size"):
            header.size = int(text)
        if text := pax.get("uid"):
            header.uid = int(text)
        if text := pax.get("gid"):
            header.gid = int(text)
    except ValueError as error:
        raise InvalidLayer(f"{name[:300]!r} has a pax record that is no number: {error}") from error
    if text := pax.get("mtime"):
        header.mtime, header.mtime_ns = time(text, name)
    if text := pax.get("atime"):
        header.access_time = time(text, name)
    if text := pax.get("ctime"):
        header.change_time = time(text, name)


def _gnu_time(field: bytes) -> tuple[int, int] | None:
    return (number(field), 0) if field[0] else None


def _text(field: bytes) -> str:
    end = field.find(b"\0")
    return (field if end < 0 else field[:end]).decode("utf-8", "surrogateescape")


_name = functools.lru_cache(1024)(_text)
