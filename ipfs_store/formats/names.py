"""Names, magic numbers and annotation keys that the formats' readers and writers share, each with where it is specified.

Specifications: "estargz" is ``docs/estargz.md`` of containerd/stargz-snapshotter; "zstd:chunked" has no text, its facts are in
``estargz/zstdchunked`` there and in ``pkg/chunked`` of containers/storage; "crfs" is google/crfs, ``stargz``.
"""

from __future__ import annotations

from typing import Literal

Kind = Literal["estargz", "zstd:chunked", "stargz"]
"""The lazily readable formats: gzip members with an inner or external TOC; zstd frames; gzip as CRFS wrote it, without chunk digests."""
LAZY: frozenset[Kind] = frozenset(("estargz", "zstd:chunked"))
"""What can be read lazily and is verified by chunk: stargz of CRFS is not."""

TOC_NAME = "stargz.index.json"
"""Tar entry that holds the TOC (estargz, "TOC and TOCEntries")."""
TOC_VERSION = 1

PREFETCH_LANDMARK = ".prefetch.landmark"
"""Last of the prioritized files (estargz, "Prioritized Files and Landmark Files")."""
NO_PREFETCH_LANDMARK = ".no.prefetch.landmark"
"""Says that there are no prioritized files."""
LANDMARK_CONTENTS = b"\x0f"

ANNOTATION_TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
"""Layer descriptor: digest of the uncompressed TOC JSON (estargz, "Content Verification in eStargz")."""
ANNOTATION_TOC_OBJECT = "containerd.io/snapshot/ipfs/toc"
"""Layer descriptor: CID of its TOC as an object of its own (`detached`). containerd hands annotations that begin so to its snapshotters."""
ROOT_ANNOTATION = "org.ipfs-store.image.root"
"""On an image's descriptor: the CID of its root (`images.root`)."""
ANNOTATION_UNCOMPRESSED_SIZE = "io.containers.estargz.uncompressed-size"
"""Layer descriptor: bytes of the uncompressed tar, decimal; Podman's additional layer store needs it."""
ANNOTATION_EXTERNAL_TOC_LAYER = "containerd.io/snapshot/stargz/layer.digest"
"""Layer descriptor in a TOC image: digest of the blob that the TOC belongs to (estargz, "eStargz image with an external TOC")."""
ANNOTATION_ZSTD_CHECKSUM = "io.github.containers.zstd-chunked.manifest-checksum"
"""zstd:chunked: digest of the *compressed* TOC."""
ANNOTATION_ZSTD_POSITION = "io.github.containers.zstd-chunked.manifest-position"
"""zstd:chunked: ``offset:compressed length:uncompressed length:type`` of the TOC, decimal."""
ANNOTATION_ZSTD_TAR_SPLIT = "io.github.containers.zstd-chunked.tarsplit-position"
"""zstd:chunked: ``offset:compressed length:uncompressed length`` of the tar-split frame; not needed to read files."""
ANNOTATION_ZSTD_CHECKSUM_OLD = "io.containers.zstd-chunked.manifest-checksum"
"""The same as ANNOTATION_ZSTD_CHECKSUM, as stargz-snapshotter and containers/storage before 2023 spell it."""
ANNOTATION_ZSTD_POSITION_OLD = "io.containers.zstd-chunked.manifest-position"

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTD_SKIPPABLE_MAGIC = b"\x50\x2a\x4d\x18"
"""First of the sixteen skippable frame magic numbers (RFC 8878, section 3.1.2); the only one that zstd:chunked uses."""
ZSTD_FOOTER_MAGIC = b"GnUlInUx"
"""End of the zstd:chunked footer; containers/storage writes it so since 2021, stargz-snapshotter always."""
ZSTD_FOOTER_MAGIC_GNU = b"GNUlInUx"
"""The spelling of containers/storage's present footer of 64 bytes."""
ZSTD_MANIFEST_TYPE = 1

_EMPTY_GZIP_HEADER = b"\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff"  # deflate, FEXTRA, no time, operating system unknown (RFC 1952, 2.3)
_EMPTY_DEFLATE_AND_TRAILER = b"\x01\x00\x00\xff\xff" + bytes(8)  # one empty stored, final block; CRC-32 and size 0


def empty_gzip_member(extra: bytes) -> bytes:
    """An empty gzip member whose extra field is ``extra``: what every footer of the gzip formats is (estargz, "Footer")."""
    return _EMPTY_GZIP_HEADER + len(extra).to_bytes(2, "little") + extra + _EMPTY_DEFLATE_AND_TRAILER


def estargz_footer(toc_offset: int) -> bytes:
    """The 51 bytes at the end of an eStargz blob whose TOC member begins at ``toc_offset`` (estargz, "Footer")."""
    return empty_gzip_member(b"SG\x16\x00" + b"%016xSTARGZ" % toc_offset)


def stargz_footer(toc_offset: int) -> bytes:
    """The 47 bytes at the end of a stargz blob of CRFS: no subfield header (estargz, "Notes on compatibility with stargz")."""
    return empty_gzip_member(b"%016xSTARGZ" % toc_offset)


EXTERNAL_TOC_FOOTER = empty_gzip_member(b"SG\x11\x00STARGZEXTERNALTOC")
"""The 46 bytes at the end of a blob whose TOC is elsewhere (estargz, "eStargz image with an external TOC")."""
ESTARGZ_FOOTER_SIZE = 51
STARGZ_FOOTER_SIZE = 47
EXTERNAL_TOC_FOOTER_SIZE = 46
ZSTD_FOOTER_SIZE = 40
"""Payload of the last skippable frame: offset, compressed length, uncompressed length, type (u64, little endian), magic."""
ZSTD_FOOTER_SIZE_TAR_SPLIT = 64
"""The same with offset, compressed and uncompressed length of tar-split before the magic (containers/storage)."""
ZSTD_SKIPPABLE_HEADER_SIZE = 8
"""Magic and a u32 length; the TOC's offset in footer and annotation is that of the bytes behind it."""
