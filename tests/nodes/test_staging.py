"""Blocks on their way into a store: what a disk that fails to write does to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from ipfs_store.cids import RAW, cid_of
from ipfs_store.errors import StorageFailed
from ipfs_store.nodes import staging as module
from ipfs_store.nodes.blockstore import BlockStore
from ipfs_store.nodes.embedded import EmbeddedNode
from ipfs_store.nodes.interface import Block
from ipfs_store.nodes.packs import Pack, Packs, Place
from ipfs_store.nodes.staging import Staging

BLOCKS = [Block(cid_of(RAW, data), data) for data in (bytes((number,)) * 1000 for number in range(10))]


def test_the_disk_is_set_to_work_while_blocks_still_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WRITE_OUT", 4000)
    store = BlockStore(tmp_path)
    done: list[str] = []
    start_writing, sync = Pack.start_writing, Pack.sync

    def starting(pack: Pack) -> None:
        done.append("start")
        start_writing(pack)

    def syncing(pack: Pack) -> None:
        done.append("sync")
        sync(pack)

    monkeypatch.setattr(Pack, "start_writing", starting)
    monkeypatch.setattr(Pack, "sync", syncing)
    staging = Staging(store)
    staging.add(BLOCKS[:5])
    assert done == ["start"] and not store.has(BLOCKS[0].cid)  # on its way, and not visible yet
    staging.add(BLOCKS[5:])
    staging.commit()
    assert done == ["start", "start", "sync"]
    assert store.read_many([block.cid for block in BLOCKS]) == [block.data for block in BLOCKS]
    staging.close()
    store.close()


def test_nothing_is_visible_when_the_disk_fails_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BlockStore(tmp_path)

    def failing(pack: Pack) -> None:
        raise StorageFailed("cannot write")

    monkeypatch.setattr(Pack, "sync", failing)
    staging = Staging(store)
    staging.add(BLOCKS)
    with pytest.raises(StorageFailed, match="cannot write"):
        staging.commit()
    staging.close()
    assert store.missing(block.cid for block in BLOCKS) == [block.cid for block in BLOCKS]
    assert list((tmp_path / "open").iterdir()) == [store._own.path] and not store.packs.numbers()
    store.close()


def test_a_push_waits_for_the_disk_also_where_another_brought_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BlockStore(tmp_path)
    store.write_many(BLOCKS)  # fetched, and so perhaps not on the disk
    synced: list[int] = []
    monkeypatch.setattr(Packs, "sync", lambda packs, numbers: synced.extend(numbers))
    staging = Staging(store)
    staging.add(BLOCKS)
    staging.commit()
    assert synced == store.packs.numbers() and staging.new_blocks == 0
    staging.close()
    store.close()


async def test_a_push_that_cannot_write_says_so_at_the_latest_when_it_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(pack: Pack, blocks: Sequence[Block]) -> list[Place]:
        raise StorageFailed("the disk is full")

    monkeypatch.setattr(Pack, "append", failing)
    node = EmbeddedNode(tmp_path)
    with pytest.raises(StorageFailed, match="the disk is full"):
        async with node.push() as push:
            await push.put_all(BLOCKS)
    monkeypatch.undo()
    async with node.push() as push:
        await push.put_all(BLOCKS)
    assert await node.local_many([block.cid for block in BLOCKS]) == [block.data for block in BLOCKS]
    await node.aclose()
