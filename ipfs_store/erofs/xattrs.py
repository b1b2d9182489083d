"""Extended attributes in EROFS (erofs_fs.h: erofs_xattr_ibody_header, erofs_xattr_entry; "Shared xattrs")."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Mapping

from ipfs_store.erofs.tree import InvalidTree

# Prefixes that have a number on disk; the kernel knows no others, and neither does any Linux file system hold them.
_PREFIXES = ((b"user.", 1), (b"trusted.", 4), (b"security.", 6))
_WHOLE = {b"system.posix_acl_access": 2, b"system.posix_acl_default": 3}
_IBODY_HEADER = 12
_MAX_BODY = (0xFFFF - 1) * 4 + _IBODY_HEADER  # i_xattr_icount is 16 bits, in units of 4 bytes
_MAX_SHARED = 255  # h_shared_count is one byte


class SharedXattrs:
    """Attributes (name and value) that several inodes have, written once for all of them."""

    def __init__(self, inodes_xattrs: Iterable[Mapping[bytes, bytes]]) -> None:
        counts: Counter[tuple[bytes, bytes]] = Counter()
        for xattrs in inodes_xattrs:
            if xattrs:
                counts.update(xattrs.items())
        self.area = bytearray()
        self._ids: dict[tuple[bytes, bytes], int] = {}
        for item, count in counts.items():
            # A reference takes 4 bytes as well, so an entry of that size gains nothing by being shared.
            if count > 1 and (entry := _entry(*item)):
                self._ids[item] = len(self.area) // 4
                self.area += entry

    def body(self, xattrs: Mapping[bytes, bytes], redirect: bytes = b"") -> bytes:
        """What follows the inode: header, references to shared attributes, inline attributes; see `Inode.redirect`."""
        if redirect:
            xattrs = {**xattrs, METACOPY: b"", REDIRECT: redirect}
        shared: list[int] = []
        inline = bytearray()
        for item in sorted(xattrs.items()):
            number = self._ids.get(item)
            if number is not None and len(shared) < _MAX_SHARED:
                shared.append(number)
            else:
                inline += _entry(*item)
        if not shared and not inline:
            return b""
        body = struct.pack(f"<IB7x{len(shared)}I", 0, len(shared), *shared) + inline
        if len(body) > _MAX_BODY:
            raise InvalidTree(f"{len(body)} bytes of extended attributes on one file (at most {_MAX_BODY})")
        return body


METACOPY, REDIRECT = b"trusted.overlay.metacopy", b"trusted.overlay.redirect"


def before_redirect(length: int) -> bytes:
    """What a body that has nothing but a redirect of this length has before it; four-byte units are filled up behind it."""
    return _BEFORE_REDIRECT + length.to_bytes(2, "little") + REDIRECT[8:]


def _entry(name: bytes, value: bytes) -> bytes:
    index, rest = _WHOLE.get(name, 0), b""
    if not index:
        for prefix, number in _PREFIXES:
            if name.startswith(prefix):
                index, rest = number, name[len(prefix) :]
                break
        else:
            return b""
    if len(rest) > 255 or len(value) > 0xFFFF or (index in (1, 4, 6) and not rest):
        raise InvalidTree(f"the extended attribute {name[:80]!r} of {len(value)} bytes is outside of what Linux takes")
    entry = struct.pack("<BBH", len(rest), index, len(value)) + rest + value
    return entry + bytes(-len(entry) % 4)


_BEFORE_REDIRECT = bytes(_IBODY_HEADER) + _entry(METACOPY, b"") + struct.pack("<BB", len(REDIRECT) - 8, 4)


def read_body(body: bytes, image: bytes, shared_at: int) -> dict[bytes, bytes]:
    """The attributes of an inode: those in its ``body``, and those that it refers to, behind ``shared_at`` of the image."""
    found: dict[bytes, bytes] = {}
    count = body[4]
    for number in struct.unpack_from(f"<{count}I", body, _IBODY_HEADER):
        name, value, _ = _read_entry(image, shared_at + 4 * number)
        found[name] = value
    at = _IBODY_HEADER + 4 * count
    while at < len(body):
        name, value, at = _read_entry(body, at)
        found[name] = value
    return found


def _read_entry(data: bytes, at: int) -> tuple[bytes, bytes, int]:
    length, index, size = struct.unpack_from("<BBH", data, at)
    at += 4
    name = _NAMES[index] + data[at : at + length]
    end = at + length + size
    return name, data[at + length : end], end + -end % 4


_NAMES = {number: prefix for prefix, number in _PREFIXES} | {number: name for name, number in _WHOLE.items()}
