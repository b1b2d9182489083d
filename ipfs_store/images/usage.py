"""How many bytes images are: each by itself, shared among them, here already, still to be fetched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ipfs_store.cids import DAG_CBOR, RAW, Cid, codec_of
from ipfs_store.dag.walk import reach
from ipfs_store.images.identity import is_root
from ipfs_store.images.root import ImageRoot, decode_root
from ipfs_store.nodes.interface import Blocks


async def block_sizes(blocks: Blocks, roots: Sequence[Cid], *, skip: Collection[Cid] = (), timeout: float | None = None) -> dict[Cid, int]:
    """Each block that ``roots`` reach, and its bytes. Leaves are not read, but for documents of which nothing says how long they are.

    Lengths of leaves are what the blocks above them say. Raises as `dag.walk.reach` does.
    """
    known: dict[Cid, int] = {}

    async def get(cid: Cid) -> bytes:
        block: bytes = await blocks.get(cid, timeout=timeout)
        if codec_of(cid) == DAG_CBOR and is_root(block):
            known.update(_raw_blobs(decode_root(block)))
        return block

    found = await reach(get, roots, skip=skip)
    return {cid: size if size is not None else known[cid] if cid in known else len(await get(cid)) for cid, size in found.items()}


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes and blocks of one image among others."""

    blocks: int
    bytes: int
    """Of all its blocks."""
    shared: int
    """Bytes of blocks that others have too."""

    @property
    def unique(self) -> int:
        """Bytes that go when the image goes."""
        return self.bytes - self.shared


def usages(images: Mapping[Cid, Mapping[Cid, int]]) -> dict[Cid, Usage]:
    """By image; ``images`` has the blocks of each with their sizes."""
    owners = Counter(cid for blocks in images.values() for cid in blocks)
    return {
        image: Usage(len(blocks), sum(blocks.values()), sum(size for cid, size in blocks.items() if owners[cid] > 1))
        for image, blocks in images.items()
    }


def _raw_blobs(root: ImageRoot) -> dict[Cid, int]:
    """Files of a single block, whose length the root says."""
    found = {blob.cid: blob.size for blob in root.blobs.values()}
    found |= {layer.toc.cid: layer.toc.size for layer in root.layers if layer.toc is not None}
    return {cid: size for cid, size in found.items() if codec_of(cid) == RAW}
