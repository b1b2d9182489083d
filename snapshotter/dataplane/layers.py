"""The layers that are mounted, and what happened to each."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ipfs_store.formats.chunks import Data
from snapshotter.dataplane.keeping import Keeper
from snapshotter.dataplane.tree import LayerTree
from snapshotter.metadata.index import ContentIndex

Decode = Callable[[bytes | memoryview, int], Data]
"""A compressed stream, and at most how many bytes it may have, to the decompressed stream. CPU work; raises InvalidLayer."""


class Blob(Protocol):
    """What a layer's files are read from; a `formats.blob.RangeReader` that knows its leaves."""

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``."""
        ...

    def unverified(self, offset: int, length: int) -> Sequence[bytes | memoryview] | None:
        """The same, in pieces, where all of it is on this machine, and not verified: for chunks with digests, which prove the same bytes. In a thread."""
        ...

    async def extent(self, offset: int, length: int) -> tuple[int, int]:
        """Beginning and end of what has to be fetched to read that range: whole leaves. What else is in there costs nothing more."""
        ...

    def following(self, offset: int, length: int) -> tuple[int, int] | None:
        """Offset and length of what is worth reading ahead, now that this range is asked for, of small files; None for nothing."""
        ...

    async def local_extent(self, offset: int, length: int) -> tuple[int, int]:
        """Beginning and end of the whole leaves from ``offset`` on that are on this machine, one behind the other, up to about ``length`` bytes."""
        ...


class ChunkTable(Protocol):
    """Files (by number) and the chunks (by index) that they are made of; see `LayerTree` and `ContentIndex`, which both are one."""

    @property
    def nodes(self) -> int:
        """Entries of the layer, for people."""
        ...

    @property
    def size(self) -> Sequence[int]:
        """By file."""
        ...

    @property
    def chunk_file_offset(self) -> Sequence[int]:
        """By chunk, as all below."""
        ...

    @property
    def chunk_size(self) -> Sequence[int]: ...  # noqa: D102

    @property
    def stream_offset(self) -> Sequence[int]: ...  # noqa: D102

    @property
    def stream_length(self) -> Sequence[int]: ...  # noqa: D102

    @property
    def chunk_inner(self) -> Sequence[int]: ...  # noqa: D102

    def path(self, node: int) -> str:
        """A name of the file, for people."""
        ...

    def chunks(self, node: int, offset: int, size: int) -> range:
        """The chunks that hold any of ``size`` bytes from ``offset`` of the file."""
        ...

    def digest(self, chunk: int) -> bytes:
        """The SHA-256 of a chunk, or NO_DIGEST."""
        ...

    def is_hole(self, chunk: int) -> bool:
        """Whether the chunk is zeros that the blob does not hold."""
        ...

    def chunks_between(self, start: int, end: int) -> Sequence[int]:
        """Every chunk whose stream begins at ``start`` of the blob or behind it, and before ``end``, in the order of the blob."""
        ...


@dataclass(eq=False, slots=True)
class Counters:
    """What was read of a layer since it was mounted. Bytes."""

    fetched: int = 0
    """Got from the node: blocks of the blob, its DAG and its TOC."""
    read: int = 0
    """Given to the kernel."""
    hits: int = 0
    """Chunks found in memory or in the cache on disk."""
    misses: int = 0
    """Chunks that had to be fetched."""
    opened: set[int] = field(default_factory=set)
    """Nodes that were opened at least once."""


@dataclass(eq=False, slots=True)
class Opened:
    """A layer as its source gives it: everything but its place in the mount."""

    tree: LayerTree
    blob: Blob
    decode: Decode


@dataclass(eq=False, slots=True, kw_only=True)
class Readable:
    """A layer whose files can be read."""

    generation: int
    """Unlike that of any other layer in this process."""
    cid: str
    digest: str
    toc_digest: str
    table: ChunkTable
    blob: Blob
    decode: Decode
    counters: Counters
    keeper: Keeper
    content: int
    """Bytes of all its regular files."""
    scope: bytes = b""
    """Chunks in memory are shared by layers of one scope."""


@dataclass(eq=False, slots=True, kw_only=True)
class MountedLayer(Readable):
    """A layer that is a folder under the mount's root."""

    number: int
    tree: LayerTree

    @property
    def key(self) -> str:
        """Names the layer whatever number it has."""
        return hashlib.sha256(b"\0".join((self.scope, self.cid.encode(), self.toc_digest.encode()))).hexdigest()

    @property
    def identity(self) -> int:
        """Tells the kernel that a number which is used again means other files; the same in every process."""
        return zlib.crc32(f"{self.cid} {self.toc_digest}".encode()) | 1


@dataclass(eq=False, slots=True, kw_only=True)
class NativeLayer(Readable):
    """A layer whose metadata the kernel has, and whose contents are asked for by id."""

    numbers: set[int] = field(default_factory=set)
    """Those under which it was mounted: equal layers are served once."""
    index: ContentIndex
    key: str
    """Which metadata: TOC and scope."""
