"""A layer's files in memory, compactly: what the kernel asks about thirty thousand entries, in some 150 bytes for each.

Everything is an array with one item for each node (inode), directory entry or chunk; objects with attributes would take ten times as much,
and ten images of 30,000 files have to fit into 150 MB beside the interpreter. A node's number inside the layer is its index; index 0 is not
used, 1 is the root. Built by `snapshotter.dataplane.build`, never changed after.
"""

from __future__ import annotations

import stat
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

ROOT = 1
NO_DIGEST = bytes(32)
"""In place of a chunk's digest where the format has none (legacy stargz)."""


def _array(code: str) -> array[int]:
    return array(code)


@dataclass(eq=False, slots=True)
class LayerTree:
    """Nodes, directory entries and chunks of one layer."""

    # Nodes.
    mode: array[int] = field(default_factory=lambda: _array("H"))
    """Type and permission bits, as in st_mode."""
    uid: array[int] = field(default_factory=lambda: _array("I"))
    gid: array[int] = field(default_factory=lambda: _array("I"))
    mtime: array[int] = field(default_factory=lambda: _array("q"))
    """Seconds."""
    mtime_ns: array[int] = field(default_factory=lambda: _array("I"))
    """Nanoseconds within the second."""
    size: array[int] = field(default_factory=lambda: _array("Q"))
    nlink: array[int] = field(default_factory=lambda: _array("I"))
    parent: array[int] = field(default_factory=lambda: _array("I"))
    """The directory of the node's first name; the root is its own."""
    first: array[int] = field(default_factory=lambda: _array("Q"))
    """Directory: its first entry. Regular file: its first chunk. Symbolic link: where its target begins in ``texts``. Device: st_rdev."""
    count: array[int] = field(default_factory=lambda: _array("I"))
    """Directory: how many entries. Regular file: how many chunks."""

    # Directory entries: those of one directory lie together, sorted by name.
    entry_node: array[int] = field(default_factory=lambda: _array("I"))
    entry_name: array[int] = field(default_factory=lambda: _array("I"))
    """Where the name begins in ``texts``."""
    entry_length: array[int] = field(default_factory=lambda: _array("B"))

    # Chunks: those of one file lie together, in order.
    chunk_file_offset: array[int] = field(default_factory=lambda: _array("Q"))
    chunk_size: array[int] = field(default_factory=lambda: _array("I"))
    stream_offset: array[int] = field(default_factory=lambda: _array("Q"))
    """Where in the blob the compressed stream begins that holds the chunk."""
    stream_length: array[int] = field(default_factory=lambda: _array("I"))
    chunk_inner: array[int] = field(default_factory=lambda: _array("I"))
    """Where in the decompressed stream the chunk begins."""
    digests: bytes = b""
    """32 bytes a chunk."""
    by_stream: array[int] = field(default_factory=lambda: _array("I"))
    """Chunks ordered by stream, then by place in it."""

    texts: bytes = b""
    """Names and targets of symbolic links."""
    xattrs: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    opaque: frozenset[int] = frozenset()
    """Directories that hide what lower layers have under the same name."""

    @property
    def nodes(self) -> int:
        """How many nodes there are; indices go from 1 up to this."""
        return len(self.mode) - 1

    @property
    def content(self) -> int:
        """Bytes of all regular files together."""
        return sum(size for mode, size in zip(self.mode, self.size, strict=True) if stat.S_ISREG(mode))

    def lookup(self, folder: int, name: bytes) -> int:
        """The node called ``name`` in the directory ``folder``; 0 if there is none."""
        low = self.first[folder]
        end = high = low + self.count[folder]
        texts, at, length = self.texts, self.entry_name, self.entry_length
        while low < high:
            middle = (low + high) // 2
            if texts[at[middle] : at[middle] + length[middle]] < name:
                low = middle + 1
            else:
                high = middle
        if low < end and texts[at[low] : at[low] + length[low]] == name:
            return self.entry_node[low]
        return 0

    def entries(self, folder: int, start: int) -> Iterator[tuple[int, bytes, int]]:
        """(number, name, node) of the directory's entries from number ``start`` on; numbers count from 0 in the order of names."""
        first = self.first[folder]
        for number in range(start, self.count[folder]):
            entry = first + number
            at = self.entry_name[entry]
            yield number, self.texts[at : at + self.entry_length[entry]], self.entry_node[entry]

    def link(self, node: int) -> bytes:
        """A symbolic link's target."""
        at = self.first[node]
        return self.texts[at : at + self.size[node]]

    def path(self, node: int) -> str:
        """A name of the node, for people: ``/usr/bin/python3``."""
        parts: list[str] = []
        while node != ROOT:
            folder = self.parent[node]
            name = next((name for _, name, child in self.entries(folder, 0) if child == node), b"?")
            parts.append(name.decode("utf-8", "backslashreplace"))
            node = folder
        return "/" + "/".join(reversed(parts))

    def chunks(self, node: int, offset: int, size: int) -> range:
        """The chunks that hold any of ``size`` bytes from ``offset`` of a regular file."""
        first = self.first[node]
        last = first + self.count[node]
        end = min(offset + size, self.size[node])
        if offset >= end:
            return range(0)
        starts = self.chunk_file_offset
        return range(bisect_right(starts, offset, first, last) - 1, bisect_left(starts, end, first, last))

    def digest(self, chunk: int) -> bytes:
        """The SHA-256 of a chunk, or NO_DIGEST."""
        return self.digests[32 * chunk : 32 * chunk + 32]

    def with_digest(self, digest: bytes) -> int | None:
        """A chunk that has this digest; looks through all."""
        at = self.digests.find(digest)
        while at % 32 and at >= 0:
            at = self.digests.find(digest, at + 1)
        return at // 32 if at >= 0 else None

    def is_hole(self, chunk: int) -> bool:
        """Whether the chunk is zeros that the blob does not hold."""
        return not self.stream_length[chunk]

    def chunks_between(self, start: int, end: int) -> Sequence[int]:
        """Every chunk whose stream begins at ``start`` of the blob or behind it, and before ``end``, in the order of the blob."""
        key = self.stream_offset.__getitem__
        low = bisect_left(self.by_stream, start, key=key)
        return self.by_stream[low : bisect_left(self.by_stream, end, lo=low, key=key)]
