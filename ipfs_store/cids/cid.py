"""Raw CID bytes: made, printed, parsed, checked against a block."""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from typing import NewType

from ipfs_store.errors import BlockMismatch, InvalidCid

Cid = NewType("Cid", bytes)
"""A CIDv1 as raw bytes: 0x01, codec, multihash (multiformats/cid, "CIDv1"). A CIDv0 is kept as its CIDv1 (dag-pb)."""

RAW = 0x55
DAG_PB = 0x70
DAG_CBOR = 0x71
_IDENTITY = 0x00
_SHA2_256 = 0x12
# Multihash code -> (hashlib constructor, digest length); what Kubo's ``add --hash`` commonly makes.
_HASHES = {
    _SHA2_256: (hashlib.sha256, 32),
    0x13: (hashlib.sha512, 64),
    0xB220: (lambda data: hashlib.blake2b(data, digest_size=32), 32),
}
MAX_IDENTITY = 128
"""Bytes of data inside an identity CID, at most; Kubo's limit (boxo/verifcid)."""


def cid_of(codec: int, block: bytes | bytearray | memoryview) -> Cid:
    """The CIDv1 (SHA-256) of ``block`` under ``codec``."""
    return Cid(bytes((1, codec, _SHA2_256, 32)) + hashlib.sha256(block).digest())


def identity_cid(codec: int, block: bytes) -> Cid:
    """The CID that carries ``block``, of at most ``MAX_IDENTITY`` bytes, inside itself."""
    size = len(block)
    return Cid(bytes((1, codec, _IDENTITY, size) if size < 0x80 else (1, codec, _IDENTITY, size & 0x7F | 0x80, size >> 7)) + block)


def codec_of(cid: Cid) -> int:
    """The multicodec of the block: RAW, DAG_PB, DAG_CBOR or another."""
    # The usual case, without decoding varints: it is asked of every leaf.
    return cid[1] if cid[2:4] == b"\x12\x20" and cid[0] == 1 and cid[1] < 0x80 and len(cid) == 36 else _split(cid)[0]


# base64's base32 is written in Python and takes 8 µs, four times for each block that is stored. 8,192 names are 2 MB.
@lru_cache(maxsize=8192)
def format_cid(cid: Cid) -> str:
    """``bafy...``: base32, lower case, as Kubo prints a CIDv1."""
    return "b" + base64.b32encode(cid).decode().lower().rstrip("=")


def parse_cid(text: str) -> Cid:
    """The CID in ``text``: version 0 or 1, any multibase, optionally behind ``ipfs://`` or ``/ipfs/``; raises InvalidCid."""
    bare = text.strip()
    for prefix in ("ipfs://", "/ipfs/"):
        bare = bare.removeprefix(prefix)
    bare = bare.rstrip("/")
    try:
        return cid_of_name(bare)
    except InvalidCid:
        pass  # written otherwise, if it is one
    from multiformats import CID  # 60 ms to import

    hint = "a CID looks like bafkrei... or Qm...; ipfs-push prints one"
    try:
        parsed = CID.decode(bare)
        if parsed.version == 0:
            parsed = parsed.set(version=1, base="base32")
        raw = Cid(bytes(parsed))
    except Exception as error:
        raise InvalidCid(f"{text[:100]!r} is not a CID: {str(error)[:120] or type(error).__name__}", hint=hint) from error
    return validate_cid(raw)


def cid_of_name(name: str) -> Cid:
    """The CID that ``format_cid`` wrote as ``name``; raises InvalidCid, for other forms of a CID as well."""
    try:
        cid = validate_cid(base64.b32decode(name[1:].upper() + "=" * (-len(name[1:]) % 8)))
    except ValueError as error:
        raise InvalidCid(f"{name[:100]!r} is not a CID") from error
    if format_cid(cid) != name:
        raise InvalidCid(f"{name[:100]!r} is not a CID as we write it")
    return cid


def format_cid_v0(cid: Cid) -> str:
    """The same block's CIDv0 (``Qm...``), by which Kubo keeps some pins; the block must be DAG-PB with a SHA-256."""
    from multiformats import multibase

    return multibase.encode(cid[2:], "base58btc")[1:]


def validate_cid(raw: bytes) -> Cid:
    """``raw``, if it is a CIDv1 whose hash we can check, or a CIDv0, made version 1; raises InvalidCid."""
    if len(raw) == 34 and raw[0] == _SHA2_256 and raw[1] == 32:
        return Cid(bytes((1, DAG_PB)) + raw)
    cid = Cid(bytes(raw))
    _split(cid)
    return cid


def verify_block(cid: Cid, block: bytes | bytearray | memoryview) -> None:
    """Check that ``block`` hashes to ``cid``; raises BlockMismatch."""
    if cid[2:4] == b"\x12\x20":  # the usual case, without decoding varints
        right = hashlib.sha256(block).digest() == cid[4:]
    else:
        _, code, digest = _split(cid)
        right = block == digest if code == _IDENTITY else _HASHES[code][0](block).digest() == digest  # type: ignore[operator]
    if not right:
        raise BlockMismatch(f"the block of {len(block)} bytes received for {format_cid(cid)} does not hash to it")


def identity_block(cid: Cid) -> bytes | None:
    """The block that an identity CID carries inside itself, None for any other CID."""
    if cid[2:4] == b"\x12\x20":  # the usual case, without decoding varints
        return None
    _, code, digest = _split(cid)
    return digest if code == _IDENTITY else None


def _split(cid: bytes) -> tuple[int, int, bytes]:
    """(codec, multihash code, digest) of a CIDv1."""
    if cid[:1] != b"\x01":
        raise InvalidCid(f"not a CIDv1: {bytes(cid[:40]).hex() or 'empty'}")
    codec, at = _varint(cid, 1)
    code, at = _varint(cid, at)
    length, at = _varint(cid, at)
    digest = cid[at:]
    if len(digest) != length:
        raise InvalidCid(f"CID {cid[:40].hex()} says its hash has {length} bytes, and has {len(digest)}")
    if code == _IDENTITY:
        if length > MAX_IDENTITY:
            raise InvalidCid(f"an identity CID of {length} bytes is over the limit of {MAX_IDENTITY}")
    elif code not in _HASHES:
        raise InvalidCid(f"CID {cid[:40].hex()} uses the hash 0x{code:x}, which is not supported")
    elif length != _HASHES[code][1]:
        raise InvalidCid(f"CID {cid[:40].hex()} has a cut hash of {length} bytes, which is not accepted")
    return codec, code, digest


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 56:
            raise InvalidCid(f"CID {data[:40].hex()} is cut short")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
