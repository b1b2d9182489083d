"""Roots that are sound in themselves and lie about the rest: nobody gets wrong bytes, and nothing incomplete is pinned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ipfs_store.cids import RAW, Cid, cid_of
from ipfs_store.errors import BlobMismatch, BlockNotFound, InvalidDag
from ipfs_store.images.conversion import lazy_form
from ipfs_store.images.pull import copy_blob, resolve
from ipfs_store.images.push import PushOptions, push_image
from ipfs_store.images.root import ImageRoot, RootManifest, decode_root
from ipfs_store.nodes.interface import Node
from ipfs_store.oci import Digest
from tests.images.test_push_pull import VectorImage
from tests.nodes.memory import MemoryNode


async def stored(node: Node) -> ImageRoot:
    result = await push_image(node, VectorImage(), PushOptions(inspect=lazy_form))
    return decode_root(await node.get(result.root))


async def put(node: Node, root: ImageRoot) -> Cid:
    block = root.encode()
    async with node.push() as push:
        await push.put(block)
    return block.cid


def manifest_of(root: ImageRoot, **changes: object) -> ImageRoot:
    manifest: RootManifest = replace(root.manifests[0], **changes)  # type: ignore[arg-type]
    return replace(root, manifests=(manifest,))


def other_config(root: ImageRoot) -> ImageRoot:
    # The manifest's bytes in the place of the config's: a file that is there, of another digest.
    return manifest_of(root, config=replace(root.manifests[0].config, cid=root.manifests[0].layers[0].blob.cid))


def config_of_another_size(root: ImageRoot) -> ImageRoot:
    return manifest_of(root, config=replace(root.manifests[0].config, size=5))


def layer_of_another_size(root: ImageRoot) -> ImageRoot:
    layer = root.manifests[0].layers[0]
    return manifest_of(root, layers=(replace(layer, blob=replace(layer.blob, size=layer.blob.size - 1)),))


@pytest.mark.parametrize("lie", [other_config, config_of_another_size, layer_of_another_size])
async def test_a_lie_about_a_blob_is_found_out(lie: Callable[[ImageRoot], ImageRoot]) -> None:
    node = MemoryNode()
    cid = await put(node, lie(await stored(node)))
    with pytest.raises((BlobMismatch, InvalidDag)):
        await resolve(node, cid)


async def test_a_layer_that_is_another_file_of_the_same_size_is_found_out() -> None:
    node = MemoryNode()
    root = await stored(node)
    layer = root.manifests[0].layers[0]
    data = bytes(layer.blob.size)
    block = cid_of(RAW, data)
    assert layer.blob.digest != Digest.of(data)
    node.store[block] = data
    # As a raw block it would be refused at sight; the same bytes below a node of their own are not.
    from ipfs_store.dag.unixfs import encode_file_node

    parent = encode_file_node([(block, len(data), len(data))])
    top = cid_of(0x70, parent)
    node.store[top] = parent
    lying = manifest_of(root, layers=(replace(layer, blob=replace(layer.blob, cid=top)),))
    found = await resolve(node, await put(node, lying))
    written: list[bytes] = []

    async def write(piece: bytes) -> None:
        written.append(piece)

    with pytest.raises(BlobMismatch, match=str(layer.blob.digest)):
        await copy_blob(node, found.manifests[0].layers[0], write)


async def test_a_root_that_misses_a_block_is_not_pinned(node: Node) -> None:
    root = await stored(node)
    layer = root.manifests[0].layers[0]
    missing = replace(layer, blob=replace(layer.blob, cid=cid_of(0x70, b"\x0a\x02\x08\x02")))
    cid = await put(node, manifest_of(root, layers=(missing,)))
    before = set(await node.pins())
    with pytest.raises(BlockNotFound):
        await node.pin(cid, name="docker.io/library/incomplete:1")
    assert set(await node.pins()) == before


async def test_a_root_that_misses_a_block_is_not_held(node: Node) -> None:
    root = await stored(node)
    layer = root.manifests[0].layers[0]
    missing = replace(layer, blob=replace(layer.blob, cid=cid_of(0x70, b"\x0a\x02\x08\x02")))
    cid = await put(node, manifest_of(root, layers=(missing,)))
    async with node.push() as push:
        assert not await push.holds(cid)
        assert await push.holds(root.encode().cid)
