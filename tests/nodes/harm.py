"""Harm to the blocks of an embedded node, whether somebody has it open or not."""

from __future__ import annotations

from pathlib import Path

from ipfs_store.cids import Cid
from ipfs_store.nodes.blockstore import BlockStore


def lose(folder: Path, cid: Cid) -> None:
    """The store in ``folder`` does not have the block any more."""
    store = BlockStore(folder)
    assert store.delete(cid)
    store.close()


def damage(folder: Path, cid: Cid, offset: int = -1) -> None:
    """A bit of the block flips, in its byte ``offset`` (negative: from its end)."""
    store = BlockStore(folder)
    place = store.place_of(cid)
    assert place is not None
    with store.packs.path(place.pack).open("r+b") as file:
        file.seek(place.offset + offset % place.size)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes((byte ^ 1,)))
    store.close()
