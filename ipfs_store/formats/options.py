"""How a layer is to be written, and what came of it: the values of `writer.write_layer`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ipfs_store.errors import InvalidInput

Format = Literal["estargz", "zstd:chunked", "tar", "gzip", "zstd"]
"""``estargz`` and ``zstd:chunked`` can be read lazily; the others are a tar as it is and in one stream of gzip or zstd."""
Audience = Literal["stargz-snapshotter", "containers-storage"]
"""Whose annotations a zstd:chunked layer gets: Podman, Buildah and CRI-O refuse one with those of both."""
Compression = Literal["", "gzip", "zstd"]

CHUNK_SIZE = 256 << 10
"""Bytes. A cold start of node reads 18 MB at 256 KiB and 24 MB at 4 MiB; the blob is a few percent larger."""
LEVELS: dict[Format, int] = {"estargz": 4, "zstd:chunked": 2, "tar": 0, "gzip": 4, "zstd": 2}
"""What is taken where no level is asked for: the fastest whose blobs are within 3 % of ctr-remote's (gzip 9, zstd 3) although chunks are a
sixteenth. One more costs 15 % of speed (gzip) or 30 % (zstd) for 2 % of size. See docs/benchmarks.md, "convert"."""
_COMPRESSION: dict[Format, Compression] = {"estargz": "gzip", "zstd:chunked": "zstd", "tar": "", "gzip": "gzip", "zstd": "zstd"}


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """What to write. Raises InvalidInput for what does not go together."""

    format: Format = "estargz"
    chunk_size: int = CHUNK_SIZE
    """Bytes of a file in a chunk, at most."""
    min_chunk_size: int = 0
    """Uncompressed bytes that a compressed stream holds at least before another begins, so that small files share one; zero: each file
    has its own. Only eStargz has that (``innerOffset``; stargz-snapshotter before 0.13 does not read it)."""
    level: int | None = None
    """Of compression: gzip 0 to 9, zstd 1 to 19; None: `LEVELS`."""
    prioritized: tuple[str, ...] = ()
    """Paths of files that come first, in that order, with what they need (directories, targets of hard links), before the prefetch landmark."""
    external_toc: bool = False
    """The table of contents is not in the blob but in `Written.toc` (estargz, "eStargz image with an external TOC")."""
    audience: Audience = "stargz-snapshotter"
    """Only zstd:chunked: who is to pull the layer lazily. The blob is the same, and ordinary for everybody else."""
    keep_diff_id: bool = False
    """The tar stays byte for byte what it was: no landmark, nothing normalised, nothing left out. eStargz then needs ``external_toc``."""

    def __post_init__(self) -> None:
        if self.format not in LEVELS:
            raise InvalidInput(f"{self.format!r} is no format that a layer can be written in: {', '.join(LEVELS)}")
        top = 19 if self.compression == "zstd" else 9
        low = 1 if self.compression == "zstd" else 0
        if self.level is not None and not low <= self.level <= top:
            raise InvalidInput(f"level {self.level} is none of {self.format}: {low} to {top}")
        if self.chunk_size < 1:
            raise InvalidInput(f"a chunk size of {self.chunk_size} bytes is none")
        if self.min_chunk_size < 0 or (self.min_chunk_size and self.format != "estargz"):
            raise InvalidInput("a minimum chunk size is for eStargz, and not negative")
        if self.external_toc and self.format != "estargz":
            raise InvalidInput("only eStargz can have its table of contents elsewhere")
        if self.keep_diff_id and self.format == "estargz" and not self.external_toc:
            raise InvalidInput("eStargz keeps a layer's DiffID only with an external table of contents")
        if self.keep_diff_id and self.prioritized:
            raise InvalidInput("a layer that keeps its DiffID cannot have prioritized files: they would change places")

    @property
    def compression(self) -> Compression:
        """What the blob is compressed with, which decides its media type."""
        return _COMPRESSION[self.format]

    @property
    def effective_level(self) -> int:
        """``level``, or what the format has where none is asked for."""
        return LEVELS[self.format] if self.level is None else self.level


@dataclass(frozen=True, slots=True)
class Written:
    """What was written."""

    digest: str
    """``sha256:...`` of the blob."""
    size: int
    """Bytes of the blob."""
    diff_id: str
    """``sha256:...`` of the uncompressed tar: an inner TOC of eStargz is part of it, one of zstd:chunked is not."""
    uncompressed_size: int
    """Bytes of that tar."""
    toc_digest: str
    """``sha256:...`` of the TOC's JSON; empty for what cannot be read lazily."""
    boundaries: tuple[int, ...]
    """Offsets in the blob where gzip members or zstd frames begin, ascending: where a DAG's leaves are cut."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """For the layer's descriptor."""
    compression: Compression = "gzip"
    toc: bytes = b""
    """With ``external_toc``, the blob of the TOC image's layer (tar.gz); else empty."""
    missing: tuple[str, ...] = ()
    """Prioritized paths that the layer does not have."""
