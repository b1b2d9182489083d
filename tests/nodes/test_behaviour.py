"""What every node does, whatever it is. The same tests run against the embedded store and a Kubo daemon."""

from __future__ import annotations

import pytest
import trio

from ipfs_store.cids import DAG_CBOR, DAG_PB, RAW, Cid, cid_of, parse_cid
from ipfs_store.dag import dagcbor
from ipfs_store.dag.builder import FileBuilder
from ipfs_store.dag.chunker import fixed_leaves
from ipfs_store.dag.file import UnixfsFile
from ipfs_store.errors import BlockNotFound, NotFound
from ipfs_store.nodes.interface import Block, Node
from tests.patience import PATIENCE

ABSENT = cid_of(RAW, b"nobody has this")


def raw(data: bytes) -> Block:
    return Block(cid_of(RAW, data), data)


def file_blocks(data: bytes, size: int = 1000) -> tuple[Cid, list[Block]]:
    builder = FileBuilder()
    blocks = [Block(cid, bytes(block)) for leaf in fixed_leaves(memoryview(data), size) for cid, block in builder.add(bytes(leaf))]
    blocks += [Block(cid, bytes(block)) for cid, block in builder.finish()]
    assert builder.root is not None
    return builder.root, blocks


async def put(node: Node, *blocks: Block) -> tuple[int, int]:
    async with node.push() as push:
        for block in blocks:
            await push.put(block)
        await push.flush()
        return push.new_blocks, push.new_bytes


async def test_a_block_comes_back_as_it_was_put(node: Node) -> None:
    blocks = [raw(b"hello"), raw(bytes(1 << 20)), Block(cid_of(DAG_CBOR, dagcbor.encode({"a": 1})), dagcbor.encode({"a": 1}))]
    await put(node, *blocks)
    for block in blocks:
        assert await node.get(block.cid) == block.data
        assert await node.has(block.cid)


async def test_what_is_there_already_is_stored_once(node: Node) -> None:
    one, two = raw(b"one"), raw(b"two two")
    assert await put(node, one) == (1, 3)
    assert await put(node, one, two) == (1, 7)
    assert await put(node, one, two) == (0, 0)


async def test_a_flushed_block_is_visible_while_the_push_is_open(node: Node) -> None:
    block = raw(b"early")
    async with node.push() as push:
        await push.put(block)
        await push.flush()
        assert await node.get(block.cid) == block.data


async def test_a_block_that_nobody_has_is_not_found_within_the_timeout(node: Node) -> None:
    with trio.fail_after(PATIENCE), pytest.raises(BlockNotFound):
        await node.get(ABSENT, timeout=0.3)
    assert not await node.has(ABSENT)


async def test_an_identity_cid_is_its_own_block(node: Node) -> None:
    with trio.fail_after(PATIENCE):
        file = await UnixfsFile.open(node.get, parse_cid("bafkqaddimvwgy3zao5xxe3debi"))
        assert await file.read(0, file.size) == b"hello world\n"


async def test_all_blocks_are_listed_once(node: Node) -> None:
    blocks = [raw(b"block %d" % number) for number in range(50)]
    await put(node, *blocks)
    listed = [cid async for cid in node.blocks()]
    assert len(listed) == len(set(listed))
    assert {block.cid for block in blocks} <= set(listed)


async def test_a_deleted_block_is_gone(node: Node) -> None:
    block = raw(b"away with it")
    await put(node, block)
    await node.delete(block.cid)
    assert not await node.has(block.cid)
    await node.delete(block.cid)


async def test_a_pin_keeps_all_it_links_to_and_gc_takes_the_rest(node: Node) -> None:
    root, blocks = file_blocks(bytes(range(256)) * 100)
    loose = raw(b"nobody keeps me")
    await put(node, *blocks, loose)
    await node.pin(root, name="kept")
    freed = await node.gc()
    assert freed.blocks >= 1
    assert not await node.has(loose.cid)
    for block in blocks:
        assert await node.get(block.cid) == block.data
    assert (await node.pins())[root] == "kept"
    await node.unpin(root)
    assert root not in await node.pins()
    await node.gc()
    assert not any([await node.has(block.cid) for block in blocks])


async def test_a_pin_follows_dag_cbor_links(node: Node) -> None:
    leaf = raw(b"linked")
    data = dagcbor.encode({"deep": [{"link": dagcbor.CidLink(leaf.cid)}]})
    root = Block(cid_of(DAG_CBOR, data), data)
    await put(node, leaf, root)
    await node.pin(root.cid)
    await node.gc()
    assert await node.has(leaf.cid)


async def test_blocks_of_an_open_push_survive_a_gc(node: Node) -> None:
    root, blocks = file_blocks(b"x" * 5000 + b"y" * 5000)
    async with node.push() as push:
        for block in blocks:
            await push.put(block)
        await push.flush()
        await node.gc()
        await node.pin(root)
    await node.gc()
    assert all([await node.has(block.cid) for block in blocks])


async def test_what_cannot_be_completed_is_not_pinned(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    root, blocks = file_blocks(bytes(range(256)) * 40)
    await put(node, *(block for block in blocks if block.cid != blocks[0].cid))
    monkeypatch.setattr(node, "_timeout", 0.5)
    with trio.fail_after(PATIENCE), pytest.raises(BlockNotFound):
        await node.pin(root)
    assert root not in await node.pins()


async def test_unpinning_what_is_not_pinned_says_so(node: Node) -> None:
    with pytest.raises(NotFound):
        await node.unpin(ABSENT)


async def test_readers_of_one_block_share_one_answer(node: Node) -> None:
    block = raw(b"popular" * 1000)
    await put(node, block)
    found: list[bytes] = []

    async def read() -> None:
        found.append(await node.get(block.cid))

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(read)
    assert found == [block.data] * 50


async def test_a_file_is_read_by_range(node: Node) -> None:
    data = bytes(range(251)) * 1000
    root, blocks = file_blocks(data, 7000)
    await put(node, *blocks)
    file = await UnixfsFile.open(node.get, root)
    assert file.size == len(data)
    for offset, length in ((0, 1), (6999, 2), (100_000, 50_000), (len(data) - 1, 1), (0, len(data))):
        assert await file.read(offset, length) == data[offset : offset + length]


async def test_a_dag_pb_block_keeps_its_codec(node: Node) -> None:
    root, blocks = file_blocks(b"z" * 3000)
    await put(node, *blocks)
    assert root[:2] == cid_of(DAG_PB, b"")[:2]
    assert await node.has(root)
