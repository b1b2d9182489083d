"""What is behind the files of a lazily readable blob: table of contents, tar-split, footer, and the annotations that point at them."""

from __future__ import annotations

import hashlib
import struct
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass

from ipfs_store.formats.compress import codec
from ipfs_store.formats.headers import BLOCK
from ipfs_store.formats.names import (
    ANNOTATION_TOC_DIGEST,
    ANNOTATION_ZSTD_CHECKSUM,
    ANNOTATION_ZSTD_CHECKSUM_OLD,
    ANNOTATION_ZSTD_POSITION,
    ANNOTATION_ZSTD_POSITION_OLD,
    ANNOTATION_ZSTD_TAR_SPLIT,
    TOC_NAME,
    ZSTD_FOOTER_MAGIC,
    ZSTD_MANIFEST_TYPE,
    ZSTD_SKIPPABLE_HEADER_SIZE,
    ZSTD_SKIPPABLE_MAGIC,
    estargz_footer,
)
from ipfs_store.formats.options import Audience, Compression

END_OF_TAR = bytes(2 * BLOCK)
_LEVEL = 6
"""49 bytes an entry of a Debian image with either; level 9 takes twice the time for 1 %."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The last parts of a blob, each a member or frame."""

    parts: Sequence[bytes]
    toc_digest: str
    annotations: dict[str, str]
    raw: bytes = b""
    """What the parts add to the uncompressed tar."""


def estargz(document: bytes, offset: int) -> Ending:
    """TOC as the tar's last entry and 51 bytes of footer, from ``offset`` of the blob (estargz, "TOC and TOCEntries", "Footer")."""
    raw = _toc_tar(document)
    digest = sha256(document)
    return Ending((_packed("gzip", raw), estargz_footer(offset)), digest, {ANNOTATION_TOC_DIGEST: digest}, raw)


def external(document: bytes) -> tuple[bytes, str]:
    """The layer of a TOC image, and the TOC's digest (estargz, "eStargz image with an external TOC")."""
    return _packed("gzip", _toc_tar(document)), sha256(document)


def zstd_chunked(document: bytes, tar_split: bytes, tar_split_size: int, offset: int, audience: Audience) -> Ending:
    """TOC, tar-split (if there is one) and footer in skippable frames, from ``offset`` of the blob.

    The footer is stargz-snapshotter's of 40 bytes; containers/storage goes by the annotations alone. It refuses layers with the annotations
    of both, so they are those of the one or the other.
    """
    compressed = _packed("zstd", document)
    at = offset + ZSTD_SKIPPABLE_HEADER_SIZE
    parts = [_skippable(compressed)]
    digest, checksum = sha256(document), sha256(compressed)
    position = f"{at}:{len(compressed)}:{len(document)}:{ZSTD_MANIFEST_TYPE}"
    if audience == "containers-storage":
        annotations = {ANNOTATION_ZSTD_CHECKSUM: checksum, ANNOTATION_ZSTD_POSITION: position}
    else:
        annotations = {ANNOTATION_TOC_DIGEST: digest, ANNOTATION_ZSTD_CHECKSUM_OLD: checksum, ANNOTATION_ZSTD_POSITION_OLD: position}
    if tar_split:
        parts.append(_skippable(tar_split))
        if audience == "containers-storage":
            split_at = at + len(compressed) + ZSTD_SKIPPABLE_HEADER_SIZE
            annotations[ANNOTATION_ZSTD_TAR_SPLIT] = f"{split_at}:{len(tar_split)}:{tar_split_size}"
    footer = struct.pack("<4Q8s", at, len(compressed), len(document), ZSTD_MANIFEST_TYPE, ZSTD_FOOTER_MAGIC)
    parts.append(_skippable(footer))
    return Ending(parts, digest, annotations)


def sha256(data: bytes) -> str:
    """``sha256:...``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _toc_tar(document: bytes) -> bytes:
    info = tarfile.TarInfo(TOC_NAME)
    info.size, info.mode = len(document), 0o444
    return b"".join((info.tobuf(tarfile.USTAR_FORMAT), document, bytes(-len(document) % BLOCK), END_OF_TAR))


def _packed(compression: Compression, data: bytes) -> bytes:
    (packed,) = codec(compression, _LEVEL)([data])
    return bytes(packed)


def _skippable(data: bytes) -> bytes:
    return ZSTD_SKIPPABLE_MAGIC + len(data).to_bytes(4, "little") + data
