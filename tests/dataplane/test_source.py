"""Layers of a node: by their TOC objects where those are what they should be, and all the same where not."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipfs_store.cids import RAW, Cid, cid_of, format_cid
from ipfs_store.formats.names import ANNOTATION_TOC_DIGEST
from ipfs_store.images.conversion import lazy_form
from ipfs_store.images.push import PushedLayer, PushOptions, push_image
from ipfs_store.nodes.embedded import EmbeddedNode
from snapshotter.dataplane.layers import Counters
from snapshotter.dataplane.source import NodeSource
from tests.images.test_push_pull import VectorImage
from tests.nodes.memory import MemoryNode


async def stored() -> tuple[MemoryNode, PushedLayer]:
    node = MemoryNode()
    (layer,) = (await push_image(node, VectorImage(), PushOptions(inspect=lazy_form))).layers
    assert layer.toc is not None
    node.asked.clear()
    return node, layer


def digest_of(layer: PushedLayer) -> str:
    return layer.descriptor.annotations[ANNOTATION_TOC_DIGEST]


async def test_a_toc_object_is_all_that_is_fetched() -> None:
    node, layer = await stored()
    assert layer.toc is not None
    opened = await NodeSource(node).open(format_cid(layer.cid), digest_of(layer), Counters(), toc=format_cid(layer.toc.cid))
    assert set(node.asked) == {layer.toc.cid}
    plain = await NodeSource(node).open(format_cid(layer.cid), digest_of(layer), Counters())
    assert opened.tree.nodes == plain.tree.nodes > 5
    start = plain.tree.stream_offset[0]
    assert await opened.blob.read(start, 100) == VectorImage().layer.read_bytes()[start : start + 100]


async def test_its_toc_is_the_layers_own_for_who_decodes_it_elsewhere() -> None:
    node, layer = await stored()
    assert layer.toc is not None
    location, toc = await NodeSource(node).load_toc(format_cid(layer.cid), digest_of(layer), Counters(), toc=format_cid(layer.toc.cid))
    plain, same = await NodeSource(node).load_toc(format_cid(layer.cid), digest_of(layer), Counters())
    assert toc == same
    assert (location.kind, location.payload_end) == (plain.kind, plain.payload_end)


@pytest.mark.parametrize("data", [b"", b"not a TOC", None])
async def test_an_object_that_is_none_costs_a_warning(data: bytes | None, caplog: pytest.LogCaptureFixture) -> None:
    node, layer = await stored()
    other = Cid(cid_of(RAW, b"nobody has it"))
    if data is not None:
        other = cid_of(RAW, data)
        node.store[other] = data
    opened = await NodeSource(node).open(format_cid(layer.cid), digest_of(layer), Counters(), toc=format_cid(other))
    assert opened.tree.nodes > 5
    assert "is of no use" in caplog.text


async def test_without_a_digest_the_object_is_not_believed() -> None:
    node, layer = await stored()
    assert layer.toc is not None
    await NodeSource(node).open(format_cid(layer.cid), "", Counters(), toc=format_cid(layer.toc.cid))
    assert layer.toc.cid not in node.asked


async def test_leaves_on_the_disk_are_had_without_the_event_loop(tmp_path: Path) -> None:
    node = EmbeddedNode(tmp_path / "node")
    (layer,) = (await push_image(node, VectorImage(), PushOptions(inspect=lazy_form))).layers
    blob, data = NodeSource(node).blob(format_cid(layer.cid), Counters()), VectorImage().layer.read_bytes()
    assert blob.unverified(0, len(data)) is None  # which leaves there are is not known yet
    start, end = await blob.extent(0, len(data))
    assert (start, end) == (0, len(data))
    assert b"".join(blob.unverified(100, len(data) - 200) or ()) == data[100:-100]
    (leaf, *_) = await (await blob.opened()).leaves(len(data) - 1, 1)  # type: ignore[attr-defined]
    await node.delete(leaf.cid)
    assert blob.unverified(0, len(data)) is None
    await node.aclose()


async def test_small_ranges_one_behind_the_other_are_read_ahead_of_where_they_are_on_the_disk(tmp_path: Path) -> None:
    node = EmbeddedNode(tmp_path / "node")
    (layer,) = (await push_image(node, VectorImage(), PushOptions(inspect=lazy_form))).layers
    blob = NodeSource(node).blob(format_cid(layer.cid), Counters())
    assert blob.following(5000, 1000) is None  # the first says nothing
    assert blob.following(6000, 1000) == (7000, 64 << 10)
    assert blob.following(6500, 1000) is None  # not where that begins
    following = blob.following(50_000, 1000)
    assert following == (7000 + (64 << 10), 128 << 10)
    assert blob.following(2000, 1000) is None  # backwards: somebody jumps about
    assert blob.following(3000, 1 << 20) is None  # a large file, which the kernel reads ahead
    leaves = await (await blob.opened()).leaves(*following)  # type: ignore[attr-defined]
    assert await blob.local_extent(*following) == (leaves[0].offset, leaves[-1].offset + leaves[-1].size)
    await node.delete(leaves[1].cid)
    assert await blob.local_extent(*following) == (leaves[0].offset, leaves[1].offset)
    await node.delete(leaves[0].cid)
    start, end = await blob.local_extent(*following)
    assert start == end
    await node.aclose()


async def test_a_node_whose_blocks_are_elsewhere_is_not_read_ahead() -> None:
    node, layer = await stored()
    blob = NodeSource(node).blob(format_cid(layer.cid), Counters())
    assert blob.following(0, 1000) is blob.following(1000, 1000) is None
    assert await blob.local_extent(0, 1000) == (0, 0)
