"""Layers that were pushed before: neither fetched nor cut again while they are there, and brought anew where they are not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ipfs_store.cids import RAW, codec_of
from ipfs_store.images.conversion import lazy_form
from ipfs_store.images.memory import LayerMemory
from ipfs_store.images.pull import resolve
from ipfs_store.images.push import PushOptions, PushResult, push_image
from ipfs_store.nodes.interface import Node
from ipfs_store.oci import Descriptor
from tests.images.test_push_pull import VectorImage
from tests.nodes.memory import MemoryNode


class CountedImage(VectorImage):
    """Counts how often a layer was opened."""

    opened = 0

    @asynccontextmanager
    async def open_blob(self, descriptor: Descriptor) -> AsyncIterator[Path]:
        self.opened += 1
        async with super().open_blob(descriptor) as path:
            yield path


async def push(node: Node, image: CountedImage, folder: Path, recipe: str = "as it is") -> PushResult:
    return await push_image(node, image, PushOptions(inspect=lazy_form, memory=LayerMemory(folder, recipe)))


async def test_a_layer_that_is_there_is_not_fetched_again(node: Node, tmp_path: Path) -> None:
    image = CountedImage()
    first = await push(node, image, tmp_path / "layers")
    second = await push(node, image, tmp_path / "layers")
    assert image.opened == 1
    assert replace(second, new_blocks=0, new_bytes=0, seconds={}) == replace(first, new_blocks=0, new_bytes=0, seconds={})
    assert (second.new_blocks, second.new_bytes) == (0, 0)


async def test_a_collected_layer_is_pushed_again(node: Node, tmp_path: Path) -> None:
    image = CountedImage()
    first = await push(node, image, tmp_path / "layers")
    for root in (first.root, first.cid):
        await node.unpin(root)
    await node.gc()
    second = await push(node, image, tmp_path / "layers")
    assert image.opened == 2
    assert second.new_bytes == first.new_bytes
    assert (await resolve(node, second.root)).manifests


async def test_a_lost_leaf_is_found_missing_and_brought_back(tmp_path: Path) -> None:
    node, image = MemoryNode(), CountedImage()
    await push(node, image, tmp_path / "layers")
    lost = next(cid for cid in node.store if codec_of(cid) == RAW)
    del node.store[lost]
    await push(node, image, tmp_path / "layers")
    assert image.opened == 2
    assert lost in node.store


async def test_another_recipe_remembers_nothing(tmp_path: Path) -> None:
    node, image = MemoryNode(), CountedImage()
    await push(node, image, tmp_path / "layers")
    await push(node, image, tmp_path / "layers", "otherwise")
    assert image.opened == 2


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b"\xff", b'{"descriptor":{},"cid":"x","converted":true,"diffId":null,"toc":null}'])
async def test_a_damaged_note_is_as_good_as_none(tmp_path: Path, damage: bytes) -> None:
    node, image = MemoryNode(), CountedImage()
    first = await push(node, image, tmp_path / "layers")
    for note in list((tmp_path / "layers").iterdir()):
        note.write_bytes(damage)
    second = await push(node, image, tmp_path / "layers")
    assert second.cid == first.cid
    assert image.opened == 2


async def test_where_nothing_can_be_written_nothing_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    node, image = MemoryNode(), CountedImage()
    await push(node, image, tmp_path / "file")
    await push(node, image, tmp_path / "file")
    assert image.opened == 2
