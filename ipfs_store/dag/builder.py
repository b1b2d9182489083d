"""Leaves in, blocks out: the balanced tree that Kubo's importer builds (174 links a node, raw leaves, CIDv1)."""

from __future__ import annotations

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

    def add(self, leaf: bytes) -> list[tuple[Cid, bytes]]:
        """The blocks that ``leaf``, the next bytes of the file, completes: itself, and nodes that became full."""
        # Lists, here and below: generators would cost a leaf of 26 KB as much as its SHA-256.
        done: list[tuple[Cid, bytes]] = []
        if self.leaves and len(leaf) <= self._inline:
            cid = identity_cid(RAW, leaf)
        else:
            cid = cid_of(RAW, leaf)
            done.append((cid, leaf))
        self.leaves += 1
        self._push(0, (cid, len(leaf), len(leaf)), done)
        return done

    def finish(self) -> list[tuple[Cid, bytes]]:
        """The remaining nodes; ``root`` is known afterwards. An empty file is one empty leaf."""
        done = [] if self.leaves else self.add(b"")
        level = 0
        while level < len(self._levels) - 1 or len(self._levels[level]) != 1:
            if self._levels[level]:
                self._close(level, done)
            level += 1
        self.root = self._levels[level][0][0]
        return done

    def _push(self, level: int, item: tuple[Cid, int, int], done: list[tuple[Cid, bytes]]) -> None:
        # A full level is closed when the next item comes, not when it becomes full: 174 leaves are one node, not a node above a node.
        if level == len(self._levels):
            self._levels.append([])
        if len(self._levels[level]) == self._links:
            self._close(level, done)
        self._levels[level].append(item)

    def _close(self, level: int, done: list[tuple[Cid, bytes]]) -> None:
        children = self._levels[level]
        self._levels[level] = []
        block = encode_file_node(children)
        cid = cid_of(DAG_PB, block)
        done.append((cid, block))
        size = sum(child[1] for child in children)
        self._push(level + 1, (cid, size, len(block) + sum(child[2] for child in children)), done)
