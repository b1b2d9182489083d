"""Blocks on their way into a store: what a disk that fails to write does to them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ipfs_store.cids import RAW, cid_of
from ipfs_store.errors import StorageFailed
from ipfs_store.nodes import staging as module
from ipfs_store.nodes.blockstore import BlockStore
from ipfs_store.nodes.interface import Block
from ipfs_store.nodes.staging import Staging

BLOCKS = [Block(cid_of(RAW, data), data) for data in (bytes((number,)) * 1000 for number in range(10))]


def test_the_disk_is_set_to_work_while_blocks_still_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WRITE_OUT", 4000)
    store = BlockStore(tmp_path)
    by = list[str]()
    done = threading.Event()
    sync = store.sync

    def watched(disk: int) -> None:
        by.append(threading.current_thread().name)
        sync(disk)
        done.set()

    monkeypatch.setattr(store, "sync", watched)
    staging = Staging(store)
    staging.add(BLOCKS[:5])
    assert done.wait(30) and by == ["write-out"] and not store.has(BLOCKS[0].cid)  # written, and not visible yet
    staging.add(BLOCKS[5:])
    staging.commit()
    assert by.count(threading.current_thread().name) == 2  # data, then names
    assert all(store.read(block.cid) == block.data for block in BLOCKS)
    staging.close()
    store.close()


def test_nothing_gets_its_name_when_the_disk_fails_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WRITE_OUT", 4000)
    store = BlockStore(tmp_path)

    def failing(disk: int) -> None:
        raise StorageFailed("cannot write")

    monkeypatch.setattr(store, "sync", failing)
    staging = Staging(store)
    staging.add(BLOCKS)
    with pytest.raises(StorageFailed, match="cannot write"):
        staging.commit()
    staging.close()
    assert not any(store.has(block.cid) for block in BLOCKS)
    assert list((tmp_path / "open").iterdir()) == [store._own.path]
    store.close()
