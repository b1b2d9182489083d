"""The table of contents of a layer: what every lazily readable format is decoded into."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal

import msgspec

EntryType = Literal["dir", "reg", "symlink", "hardlink", "char", "block", "fifo"]


NO_XATTRS: Mapping[str, bytes] = {}


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """A piece of a regular file that is fetched, decompressed and verified by itself."""

    file_offset: int
    """Where in the file."""
    size: int
    """Bytes of the file, uncompressed."""
    offset: int
    """Where in the blob the compressed stream (gzip member or zstd frame) begins that holds it."""
    end: int
    """The bytes from ``offset`` up to here are enough to get at the chunk; what follows it may begin before."""
    inner_offset: int
    """Where in the decompressed stream this chunk begins."""
    digest: str
    """``sha256:...`` of the uncompressed chunk; empty where the format has none (legacy stargz), and for a hole."""

    @property
    def is_hole(self) -> bool:
        """Whether the chunk is zeros that are not in the blob (containers/storage, pkg/chunked: ``chunkType`` is ``zeros``)."""
        return not self.digest and self.offset == self.end == 0


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One file, directory, link or node of a layer, under its normalised path. ``hardlink`` entries name their target."""

    path: str
    """Relative, no leading ``/`` or ``./``, no trailing ``/``; the root is the empty string. Undecodable bytes as surrogates."""
    type: EntryType
    mode: int
    """Permission bits with set-user-id, set-group-id and sticky (07777), without the type."""
    uid: int
    gid: int
    mtime: int
    """Seconds since the epoch."""
    mtime_ns: int = 0
    """Nanoseconds within the second."""
    size: int = 0
    link: str = ""
    """Symbolic link: its target as it stands. Hard link: the path of the entry it is another name of, which is in the same TOC and no link."""
    dev_major: int = 0
    dev_minor: int = 0
    xattrs: Mapping[str, bytes] = {}
    digest: str = ""
    """``sha256:...`` of the whole contents of a regular file, where the TOC has it."""
    chunks: tuple[Chunk, ...] = ()
    """In order of ``file_offset``, without gaps, adding up to ``size`` (checked on decoding)."""

    def chunks_of(self, offset: int, size: int) -> tuple[Chunk, ...]:
        """Those that hold any of ``size`` bytes of the file from ``offset``, found by bisection."""
        end = min(offset + size, self.size)
        if not 0 <= offset < end:
            return ()
        first = bisect_right(self.chunks, offset, key=_file_offset) - 1
        return self.chunks[first : bisect_left(self.chunks, end, first, key=_file_offset)]


def _file_offset(chunk: Chunk) -> int:
    return chunk.file_offset


class Toc(msgspec.Struct, frozen=True, dict=True):
    """Every entry of a layer, parents before children, one per path, landmarks left out; the root is always there."""

    entries: Sequence[Entry]
    digest: str
    """``sha256:...`` of the TOC as it was read (estargz: of the uncompressed JSON)."""
    prefetch_end: int = 0
    """Blob bytes before the prefetch landmark (0: no prioritized files)."""

    @cached_property
    def by_path(self) -> Mapping[str, Entry]:
        """The entries by their paths; made at the first use, 100 bytes an entry."""
        return {entry.path: entry for entry in self.entries}
