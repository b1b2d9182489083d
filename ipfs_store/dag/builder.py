"""Leaves in, blocks out: the balanced tree that Kubo's importer builds (174 links a node, raw leaves, CIDv1)."""

from __future__ import annotations

from collections.abc import Iterator

from ipfs_store.cids import DAG_PB, RAW, Cid, cid_of
from ipfs_store.cids.cid import MAX_IDENTITY, identity_cid
from ipfs_store.dag.unixfs import encode_file_node

LINKS = 174  # Kubo's default (boxo/ipld/unixfs/importer/helpers): 8192-byte nodes of links of about 47 bytes


class FileBuilder:
    """Builds one file. Holds what is not yet full of each level: at most 174 links a level."""

    def __init__(self, links: int = LINKS, *, inline: bool = False) -> None:
        """``inline``: leaves of up to 128 bytes, but the first, are no blocks: their CID holds them (``ipfs add --inline --inline-limit 128``)."""
        self._links = links
        # The first may be the only one, hence the file's root, which is a block that can be pinned.
        self._inline = MAX_IDENTITY if inline else -1
        self._levels: list[list[tuple[Cid, int, int]]] = [[]]
        self.leaves = 0
        self.root: Cid | None = None
        """The file's CID, after ``finish``."""

    def add(self, leaf: bytes) -> Iterator[tuple[Cid, bytes]]:
        """The blocks that ``leaf``, the next bytes of the file, completes: itself, and nodes that became full."""
        if self.leaves and len(leaf) <= self._inline:
            cid = identity_cid(RAW, leaf)
        else:
            cid = cid_of(RAW, leaf)
            yield cid, leaf
        self.leaves += 1
        yield from self._push(0, (cid, len(leaf), len(leaf)))

    def finish(self) -> Iterator[tuple[Cid, bytes]]:
        """The remaining nodes; ``root`` is known afterwards. An empty file is one empty leaf."""
        if not self.leaves:
            yield from self.add(b"")
        level = 0
        while True:
            items = self._levels[level]
            if level == len(self._levels) - 1 and len(items) == 1:
                self.root = items[0][0]
                return
            if items:
                yield from self._close(level)
            level += 1

    def _push(self, level: int, item: tuple[Cid, int, int]) -> Iterator[tuple[Cid, bytes]]:
        # A full level is closed when the next item comes, not when it becomes full: 174 leaves are one node, not a node above a node.
        if level == len(self._levels):
            self._levels.append([])
        if len(self._levels[level]) == self._links:
            yield from self._close(level)
        self._levels[level].append(item)

    def _close(self, level: int) -> Iterator[tuple[Cid, bytes]]:
        children = self._levels[level]
        self._levels[level] = []
        block = encode_file_node(children)
        cid = cid_of(DAG_PB, block)
        yield cid, block
        size = sum(child[1] for child in children)
        yield from self._push(level + 1, (cid, size, len(block) + sum(child[2] for child in children)))
