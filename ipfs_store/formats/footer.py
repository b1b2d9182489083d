"""Where the table of contents of a blob is: footers of the four formats, and the annotations that make them unnecessary."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from ipfs_store.errors import InvalidLayer, NotSeekable
from ipfs_store.formats.limits import MAX_TOC
from ipfs_store.formats.names import (
    ANNOTATION_ZSTD_POSITION,
    ANNOTATION_ZSTD_POSITION_OLD,
    ESTARGZ_FOOTER_SIZE,
    EXTERNAL_TOC_FOOTER,
    STARGZ_FOOTER_SIZE,
    ZSTD_FOOTER_MAGIC,
    ZSTD_FOOTER_MAGIC_GNU,
    ZSTD_FOOTER_SIZE,
    ZSTD_MANIFEST_TYPE,
    ZSTD_SKIPPABLE_HEADER_SIZE,
    ZSTD_SKIPPABLE_MAGIC,
    Kind,
    estargz_footer,
    stargz_footer,
)

_LARGEST_FOOTER = 256  # bytes of a zstd:chunked footer; 40 and 64 are in use, containers/storage reserves the right to append
_HINT = "it can be pulled the ordinary way, or converted: ipfs-store convert"


@dataclass(frozen=True, slots=True)
class TocLocation:
    """Where a blob's TOC is, and where its files end."""

    kind: Kind
    offset: int
    """Of the compressed TOC in the blob; meaningless if ``external``."""
    length: int
    """Compressed bytes."""
    payload_end: int
    """Blob bytes that can belong to chunks."""
    raw_length: int | None = None
    """Uncompressed bytes, where the footer says so."""
    external: bool = False
    """The TOC is in a blob of its own (estargz, "eStargz image with an external TOC")."""


def locate_toc(tail: bytes, size: int, annotations: Mapping[str, str]) -> TocLocation:
    """Find the TOC of a blob of ``size`` bytes that ends with ``tail`` (72 bytes are enough).

    Raises NotSeekable if there is no footer, InvalidLayer if there is one that points outside the blob.
    """
    by_annotation = zstd_position(annotations)
    if by_annotation is not None:
        return _zstd(by_annotation, size)
    for length in range(ZSTD_FOOTER_SIZE, _LARGEST_FOOTER, 8):
        header = tail[-length - ZSTD_SKIPPABLE_HEADER_SIZE : -length]
        if header == ZSTD_SKIPPABLE_MAGIC + length.to_bytes(4, "little") and tail[-8:] in (ZSTD_FOOTER_MAGIC, ZSTD_FOOTER_MAGIC_GNU):
            return _zstd(struct.unpack_from("<4Q", tail, len(tail) - length), size)
    if tail.endswith(EXTERNAL_TOC_FOOTER):
        return TocLocation("estargz", 0, 0, size - len(EXTERNAL_TOC_FOOTER), external=True)
    for kind, length, at in (("estargz", ESTARGZ_FOOTER_SIZE, 16), ("stargz", STARGZ_FOOTER_SIZE, 12)):
        digits = tail[-length:][at : at + 16]
        if re.fullmatch(rb"[0-9a-fA-F]{16}", digits):
            offset = int(digits, 16)
            # The whole footer is compared: its bytes follow from the offset (estargz, "Footer"), apart from the operating system byte.
            expected = estargz_footer(offset) if kind == "estargz" else stargz_footer(offset)
            found = tail[-length:].lower()
            if found[:4] == expected[:4] and found[10:] == expected[10:].lower():
                return _gzip("estargz" if kind == "estargz" else "stargz", offset, size - length)
    raise NotSeekable(f"the layer blob of {size} bytes has no footer of eStargz, zstd:chunked or stargz", hint=_HINT)


def zstd_position(annotations: Mapping[str, str]) -> tuple[int, ...] | None:
    """(offset, compressed, uncompressed, type) of a zstd:chunked TOC by its layer's annotation; raises InvalidLayer if that is none."""
    text = annotations.get(ANNOTATION_ZSTD_POSITION) or annotations.get(ANNOTATION_ZSTD_POSITION_OLD)
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,19}(:[0-9]{1,19}){3}", text):
        raise InvalidLayer(f"annotation {ANNOTATION_ZSTD_POSITION} is {text[:100]!r}, not offset:length:length:type")
    return tuple(int(part) for part in text.split(":"))


def _zstd(position: tuple[int, ...], size: int) -> TocLocation:
    offset, length, raw_length, manifest_type = position
    if manifest_type != ZSTD_MANIFEST_TYPE:
        raise InvalidLayer(f"the zstd:chunked TOC is of type {manifest_type}; only type {ZSTD_MANIFEST_TYPE} is known")
    if offset < ZSTD_SKIPPABLE_HEADER_SIZE or length == 0 or offset + length > size:
        raise InvalidLayer(f"the zstd:chunked TOC is said to be at {offset}, {length} bytes, outside the blob of {size} bytes")
    _limit(max(length, raw_length))
    return TocLocation("zstd:chunked", offset, length, offset - ZSTD_SKIPPABLE_HEADER_SIZE, raw_length)


def _gzip(kind: Kind, offset: int, footer_at: int) -> TocLocation:
    if offset >= footer_at:
        raise InvalidLayer(f"the {kind} footer puts the TOC at {offset}, behind the end of the blob's contents at {footer_at}")
    _limit(footer_at - offset)
    return TocLocation(kind, offset, footer_at - offset, offset)


def _limit(length: int) -> None:
    if length > MAX_TOC:
        raise InvalidLayer(f"the TOC takes {length} bytes, over the limit of {MAX_TOC}", hint=_HINT)
