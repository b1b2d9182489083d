"""Unsigned LEB128 varints, as protobuf, CIDs and CARs use them (multiformats/unsigned-varint: at most 9 bytes)."""

from __future__ import annotations

from ipfs_store.errors import InvalidDag


def encode(value: int) -> bytes:
    """The shortest encoding of ``value``, which is not negative."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode(data: bytes, at: int) -> tuple[int, int]:
    """(value, offset behind it); raises InvalidDag where it is cut short or over 63 bits."""
    value = shift = 0
    while True:
        if at >= len(data):
            raise InvalidDag("a varint is cut short")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 56:
            raise InvalidDag("a varint is longer than 9 bytes")
