"""The layers that are mounted, and what happened to each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ipfs_store.formats.blob import RangeReader
from snapshotter.dataplane.tree import LayerTree


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
    blob: RangeReader
    decode: Callable[[bytes, int], bytes]
    """A compressed stream, and at most how many bytes it may have, to the decompressed stream. CPU work; raises InvalidLayer."""


@dataclass(eq=False, slots=True)
class MountedLayer:
    """A layer under the mount's root."""

    number: int
    generation: int
    """Tells the kernel that a number which is used again means other files."""
    cid: str
    digest: str
    toc_digest: str
    tree: LayerTree
    blob: RangeReader
    decode: Callable[[bytes, int], bytes]
    counters: Counters
    content: int
    """Bytes of all its regular files."""
