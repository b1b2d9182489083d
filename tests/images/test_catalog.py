"""Which images a node keeps, how much of each no other has, and what goes when one goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipfs_store.cids import RAW, cid_of
from ipfs_store.errors import ImageNotFound, InvalidCid, InvalidInput, NotFound
from ipfs_store.images.catalog import find, held_images, keep, remove
from ipfs_store.images.compare import compare, transfer
from ipfs_store.images.identity import identify
from ipfs_store.images.inspection import inspect
from ipfs_store.images.layer_files import open_files
from ipfs_store.images.usage import usages
from ipfs_store.nodes.embedded import EmbeddedNode
from ipfs_store.nodes.interface import Block, Node
from tests.images.conftest import FILES, NAME, NOISE, made, pushed
from tests.images.test_carfile import layer_bytes
from tests.nodes.memory import MemoryNode

SECOND = [FILES[0], {"etc/second": b"changed", "etc/third": b"third"}]


async def test_images_their_sizes_and_what_they_share(node: Node, tmp_path: Path) -> None:
    one = await pushed(node, tmp_path)
    two = await pushed(node, tmp_path, made(SECOND), name="docker.io/library/other:1")
    stray = Block(cid_of(RAW, b"{}"), b"{}")
    async with node.push() as push:
        await push.put(stray)
        await push.flush()
        await node.pin(stray.cid, name="no image")
    held = await held_images(node)
    assert [(item.name, item.image.cid, item.root, item.lost) for item in held] == [
        ("docker.io/library/other:1", two.cid, two.root, ""),
        (NAME, one.cid, one.root, ""),
    ]
    used = usages({item.image.cid: item.blocks for item in held})
    assert used[one.cid].shared == used[two.cid].shared > len(NOISE)
    assert used[one.cid].unique > 1 << 20
    for item in held:
        for cid, size in item.blocks.items():
            assert len(await node.get(cid)) == size
    before = {cid[2:] async for cid in node.blocks()}
    assert set(await remove(node, one.cid)) == {one.cid, one.root}
    await node.gc()
    gone = before - {cid[2:] async for cid in node.blocks()}
    assert gone == {cid[2:] for cid in held[1].blocks.keys() - held[0].blocks.keys()}
    assert await layer_bytes(node, two.cid)
    assert [item.name for item in await held_images(node)] == ["docker.io/library/other:1"]


async def test_a_root_stands_for_its_image(node: Node, tmp_path: Path) -> None:
    image = await pushed(node, tmp_path)
    assert set(await remove(node, image.root)) == {image.cid, image.root}
    assert await node.pins() == {}
    with pytest.raises(NotFound, match="not pinned"):
        await remove(node, image.root)


async def test_parts_that_another_image_needs_stay_pinned(tmp_path: Path) -> None:
    node = MemoryNode()
    one = await pushed(node, tmp_path, own_annotations=False)
    two = await pushed(node, tmp_path, made(SECOND), name="docker.io/library/other:1", own_annotations=False)
    for image in (one, two):
        await node.unpin(image.root)
        await keep(node, await identify(node, image.cid))
    base = one.layers[0].cid
    assert base in await node.pins()
    removed = await remove(node, one.cid)
    assert base not in removed
    assert one.layers[1].cid in removed
    await node.gc()
    assert await layer_bytes(node, two.cid)


async def test_an_image_that_lost_a_block_is_listed_as_such(tmp_path: Path) -> None:
    node = MemoryNode()
    image = await pushed(node, tmp_path)
    del node.store[image.layers[0].cid]
    (held,) = await held_images(node)
    assert (held.name, dict(held.blocks)) == (NAME, {})
    assert "1 blocks are not here" in held.lost


async def test_names_find_images(node: Node, tmp_path: Path) -> None:
    image = await pushed(node, tmp_path)
    for text in (NAME, "thing:1"):
        assert await find(node, text) == image.cid
    with pytest.raises(ImageNotFound, match="neither a CID nor the name"):
        await find(node, "thing:2")
    with pytest.raises(InvalidCid):
        await find(node, "ipfs://thing")
    another = await pushed(node, tmp_path, made(SECOND))
    with pytest.raises(InvalidInput, match="2 images are called"):
        await find(node, "thing:1")
    assert await remove(node, another.cid)
    assert await find(node, "thing:1") == image.cid


async def test_an_image_pinned_without_a_name_is_found_by_its_own(node: Node, tmp_path: Path) -> None:
    image = await pushed(node, tmp_path)
    for pin in (image.cid, image.root):
        await node.unpin(pin)
    await node.pin(image.root)
    assert await find(node, "thing:1") == image.root
    assert [(item.name, item.image.cid) for item in await held_images(node)] == [(NAME, image.root)]


async def test_what_a_pull_would_fetch(node: Node, other: EmbeddedNode, tmp_path: Path) -> None:
    image = await pushed(node, tmp_path)
    newer = await pushed(node, tmp_path, made(SECOND), name="docker.io/library/other:1")
    found = await inspect(node, image.cid)
    assert (found.name, found.cid, found.root) == (NAME, image.cid, image.root)
    assert (found.whole.missing, found.lazy.missing) == (0, 0)
    assert found.shared > len(NOISE)
    (manifest,) = found.manifests
    assert [layer.cid for layer in manifest.layers] == [layer.cid for layer in image.layers]
    assert {layer.format for layer in manifest.layers} == {"estargz"}
    assert manifest.layers[0].shared == manifest.layers[0].part.bytes
    assert manifest.layers[0].part.bytes > len(NOISE)

    # Another machine that has the first image looks at the second one.
    here = MemoryNode()
    async for cid in node.blocks():
        here.store[cid] = await node.get(cid)
    blocks = (await held_images(node))[1].blocks
    for cid in blocks:
        await other._on_disk(other.store.write, cid, await node.get(cid))
    await keep(other, await identify(other, image.cid))
    other._peers, other._client = ("another machine",), Peer(node)  # type: ignore[assignment]
    remote = await inspect(other, newer.cid)
    assert remote.shared > len(NOISE)
    assert 0 < remote.whole.missing < 10_000
    assert remote.lazy.missing <= remote.whole.missing
    moved = await transfer(node, image.cid, newer.cid)
    assert remote.whole.missing <= moved.bytes < remote.whole.missing + 10_000
    assert moved.total_bytes == remote.whole.bytes


class Peer:
    """A source of blocks that is another node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def fetch(self, cid: bytes, *, timeout: float) -> bytes:
        return await self._node.get(cid)  # type: ignore[arg-type]

    async def run(self, *wanted: object) -> None:
        pass

    async def aclose(self) -> None:
        pass


async def test_files_that_change(tmp_path: Path) -> None:
    node = MemoryNode()
    old, new = await pushed(node, tmp_path), await pushed(node, tmp_path, made(SECOND), name="docker.io/library/other:1")
    plain = await pushed(node, tmp_path, made(SECOND), name="docker.io/library/plain:1", convert=False)
    async with open_files(node, old.cid) as before:
        for image in (new, plain):
            async with open_files(node, image.cid) as after:
                changes = compare(before, after)
                assert [(change.path, change.kind, change.bytes) for change in changes] == [
                    ("etc/second", "changed", 7),
                    ("etc/third", "added", 5),
                    ("usr/more", "removed", 0),
                ]
                assert compare(after, after) == []
