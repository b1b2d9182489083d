"""A block store whose files are damaged, whose processes are killed, and whose disk is full: no wrong byte, and nothing lost that was promised."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipfs_store.cids import RAW, Cid, cid_of
from ipfs_store.dag.car import CarReader
from ipfs_store.errors import StorageFailed
from ipfs_store.nodes import packs as packs_module
from ipfs_store.nodes.blockstore import BlockStore
from ipfs_store.nodes.collect import collect
from ipfs_store.nodes.interface import Block
from ipfs_store.nodes.packs import Place
from ipfs_store.nodes.pins import Pins
from ipfs_store.nodes.staging import Staging
from tests.requirements import require_root


def block(number: int, size: int = 20_000) -> Block:
    data = random.Random(number).randbytes(size)
    return Block(cid_of(RAW, data), data)


BLOCKS = [block(number) for number in range(40)]
CIDS = [each.cid for each in BLOCKS]
DATA = [each.data for each in BLOCKS]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BlockStore]:
    store = BlockStore(tmp_path / "store")
    yield store
    store.close()


def push(store: BlockStore, blocks: list[Block]) -> None:
    staging = Staging(store)
    staging.add(blocks)
    staging.commit()
    staging.close()


def place(store: BlockStore, cid: Cid) -> Place:
    found = store.place_of(cid)
    assert found is not None
    return found


def overwrite(store: BlockStore, at: Place, data: bytes, offset: int = 0) -> None:
    with store.packs.path(at.pack).open("r+b") as file:
        file.seek(at.offset + offset)
        file.write(data)


def test_a_pack_is_an_ordinary_car(store: BlockStore) -> None:
    push(store, BLOCKS)
    (number,) = store.packs.numbers()
    reader = CarReader()
    assert list(reader.feed(store.packs.path(number).read_bytes())) == [(each.cid, each.data) for each in BLOCKS]
    reader.close()


def test_pushes_one_after_the_other_share_packs_and_those_at_the_same_time_do_not(
    store: BlockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(store, BLOCKS[:10])
    push(store, BLOCKS[10:20])
    assert len(store.packs.numbers()) == 1
    one, two = Staging(store), Staging(store)
    one.add(BLOCKS[20:25])
    two.add(BLOCKS[25:30])
    one.commit()
    two.commit()
    one.close()
    two.close()
    assert len(store.packs.numbers()) == 2
    monkeypatch.setattr(packs_module, "PACK_BYTES", 50_000)
    push(store, BLOCKS[30:])
    assert len(store.packs.numbers()) == 3
    assert store.read_many(CIDS) == DATA


@pytest.mark.parametrize("offset", [0, 10_000, 19_999])
def test_a_bit_that_flips_costs_that_block_alone(store: BlockStore, offset: int, caplog: pytest.LogCaptureFixture) -> None:
    push(store, BLOCKS)
    at = place(store, CIDS[5])
    overwrite(store, at, bytes((DATA[5][offset] ^ 1,)), offset)
    assert store.read_many(CIDS) == [*DATA[:5], None, *DATA[6:]]
    assert "it is removed" in caplog.text
    assert not store.has(CIDS[5])
    push(store, [BLOCKS[5]])
    assert store.read(CIDS[5]) == DATA[5]


def test_a_pack_that_is_cut_or_gone_costs_its_blocks(store: BlockStore, caplog: pytest.LogCaptureFixture) -> None:
    push(store, BLOCKS)
    at = place(store, CIDS[20])
    os.truncate(store.packs.path(at.pack), at.offset + 100)
    assert store.read_many(CIDS) == [*DATA[:20], *[None] * 20]
    store.packs.path(at.pack).unlink()
    assert not store.has(CIDS[0])
    assert [record.getMessage().partition(" ends ")[2] for record in caplog.records] == [
        f"at byte {at.offset + 100}, before 20 of its blocks; they are removed", "at byte 0, before 20 of its blocks; they are removed",
    ]  # fmt: skip
    push(store, BLOCKS)
    assert store.read_many(CIDS) == DATA


def test_nobody_appends_where_lost_blocks_should_lie(store: BlockStore) -> None:
    push(store, BLOCKS[:20])
    at = place(store, CIDS[10])
    os.truncate(store.packs.path(at.pack), at.offset + 100)
    push(store, BLOCKS[20:])
    assert store.missing(CIDS) == CIDS[10:20]
    push(store, BLOCKS)
    assert store.read_many(CIDS) == DATA


@pytest.mark.parametrize("damage", ["gone", "empty", "nonsense", "cut", "middle", "another format"])
def test_an_index_that_is_damaged_is_made_again_from_the_packs(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    many = [block(number, 300) for number in range(2000)]
    store = BlockStore(tmp_path)
    push(store, many)
    store.close()
    index = tmp_path / "index.sqlite"
    data = index.read_bytes()
    if damage == "gone":
        index.unlink()
    elif damage == "another format":
        index.write_bytes(data[:60] + bytes((0, 0, 0, 99)) + data[64:])
    else:
        middle = data[:4096] + bytes(len(data) - 4096)
        index.write_bytes({"empty": b"", "nonsense": b"nonsense" * 5000, "cut": data[:10_000], "middle": middle}[damage])
    store = BlockStore(tmp_path)
    assert store.read_many([each.cid for each in many]) == [each.data for each in many]
    assert store.stats().blocks == len(many)
    assert [record for record in caplog.records if "made again from 1 packs: 2000 blocks" in record.getMessage()]
    store.close()


def test_what_a_lost_index_knew_is_found_behind_damage_and_holes(store: BlockStore) -> None:
    push(store, BLOCKS)
    for number in (3, 4, 5, 20):
        store.delete(CIDS[number])
    at = place(store, CIDS[10])
    overwrite(store, at, bytes(50), -39)  # the length and CID in front of it, too
    store.index.path.unlink()
    assert store.read_many(CIDS) == [None if number in (3, 4, 5, 10, 20) else data for number, data in enumerate(DATA)]


def test_processes_that_have_an_index_open_go_on_with_the_new_one(tmp_path: Path) -> None:
    one, two = BlockStore(tmp_path), BlockStore(tmp_path)
    push(one, BLOCKS[:10])
    assert two.read(CIDS[0]) == DATA[0]
    staging = Staging(two)
    staging.add(BLOCKS[10:20])
    one.index.path.write_bytes(b"nonsense" * 1000)
    (tmp_path / "index.sqlite-wal").unlink()
    three = BlockStore(tmp_path)
    assert three.read_many(CIDS[:10]) == DATA[:10]
    staging.commit()
    two.write(CIDS[20], DATA[20])
    for store in (one, two, three):
        assert store.read_many(CIDS[:21]) == DATA[:21]
    staging.close()
    for store in (one, two, three):
        store.close()


def test_a_store_of_the_first_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "version").write_text("1\n")
    with pytest.raises(StorageFailed, match="format 1") as refused:
        BlockStore(tmp_path)
    assert "remove it" in (refused.value.hint or "")


def test_what_is_deleted_is_given_back_to_the_disk(store: BlockStore) -> None:
    blocks = [block(number, 200_000) for number in range(60)]
    push(store, blocks)
    pins = Pins(store.path / "pins")
    for each in blocks[::3]:
        pins.add(each.cid, "")
    before = store.stats()
    assert collect(store, pins).blocks == 40
    after = store.stats()
    assert after.blocks == 20 and before.disk - after.disk > 7_000_000
    assert store.read_many([each.cid for each in blocks]) == [each.data if number % 3 == 0 else None for number, each in enumerate(blocks)]
    for each in blocks[::3]:
        pins.remove(each.cid)
    collect(store, pins)
    assert store.stats() == type(after)(0, 0, 0, 0)


@pytest.mark.parametrize("holes", [True, False])
def test_what_is_left_of_a_pack_moves_where_it_is_worth_it(store: BlockStore, holes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    push(store, BLOCKS)
    if not holes:
        monkeypatch.setattr(packs_module, "punch", lambda handle, start, end: False)
    kept = 5 if holes else 20
    pins = Pins(store.path / "pins")
    for cid in CIDS[-kept:]:
        pins.add(cid, "")
    collect(store, pins)
    (number,) = store.packs.numbers()
    assert number == 2 and store.packs.disk_usage(number)[0] < (kept + 1) * 20_100
    assert store.read_many(CIDS[-kept:]) == DATA[-kept:]


def test_readers_and_pushes_beside_a_collector_see_no_wrong_byte_and_lose_nothing(
    store: BlockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs_module, "PACK_BYTES", 200_000)
    pins = Pins(store.path / "pins")
    over = threading.Event()
    failures: list[str] = []
    pushed = 0

    def read() -> None:
        while not over.is_set():
            for cid, data, found in zip(CIDS, DATA, store.read_many(CIDS), strict=True):
                if found not in (None, data):
                    failures.append(f"wrong bytes for {cid.hex()}")

    def work(seed: int) -> None:
        nonlocal pushed
        choose = random.Random(seed)
        for _ in range(60):
            some = choose.sample(BLOCKS, 8)
            staging = Staging(store)
            staging.add(some)
            staging.commit()
            if any(found is None for found in store.read_many([each.cid for each in some])):
                failures.append("a block of an open push is gone")
            staging.close()
            pushed += 1

    def gc() -> None:
        while not over.is_set():
            collect(store, pins)

    threads = [threading.Thread(target=read), threading.Thread(target=gc)]
    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in (*threads, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    over.set()
    for thread in threads:
        thread.join()
    assert not failures and pushed == 180


_WRITER = """
import sys
from pathlib import Path
from tests.nodes.test_packs import BLOCKS, block
from ipfs_store.nodes.blockstore import BlockStore
from ipfs_store.nodes.staging import Staging
from tests.requirements import require_root
store = BlockStore(Path(sys.argv[1]))
number = int(sys.argv[2])
print("ready", flush=True)
while True:
    number += 10
    blocks = [block(each, 3000) for each in range(number, number + 10)]
    if number % 20:
        staging = Staging(store)
        staging.add(blocks[:5])
        staging.add(blocks[5:])
        staging.commit()
        print(number, flush=True)
        staging.close()
    else:
        store.write_many(blocks)
        print(number, flush=True)
"""


def test_a_process_that_is_killed_loses_nothing_that_it_reported(tmp_path: Path) -> None:
    choose = random.Random(7)
    reported: set[int] = set()
    for turn in range(6):
        with subprocess.Popen([sys.executable, "-c", _WRITER, tmp_path, str(turn * 100_000)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
            reported.add(int(writer.stdout.readline()))
            time.sleep(choose.uniform(0, 0.2))
            os.kill(writer.pid, signal.SIGKILL)
            reported.update(int(line) for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n"))
        store = BlockStore(tmp_path)
        assert list((tmp_path / "open").iterdir()) == [store._own.path]
        for number in reported:
            blocks = [block(each, 3000) for each in range(number, number + 10)]
            assert store.read_many([each.cid for each in blocks]) == [each.data for each in blocks]
        for pack in store.packs.numbers():  # nothing unfinished is left behind the last block
            assert store.packs.disk_usage(pack)[0] == store.index.end_of(pack)
        store.close()


def test_a_full_disk_is_said_and_nothing_is_lost(store: BlockStore) -> None:
    push(store, BLOCKS[:20])
    (number,) = store.packs.numbers()
    length = store.packs.disk_usage(number)[0]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length + 50_000, before[1]))
    try:
        staging = Staging(store)
        with pytest.raises(StorageFailed, match=r"00000001\.car: cannot write"):
            staging.add(BLOCKS[20:])
        assert store.packs.disk_usage(number)[0] == length
        staging.add(BLOCKS[20:22])
        staging.commit()
        staging.close()
        with pytest.raises(StorageFailed):
            store.write_many(BLOCKS[22:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert store.read_many(CIDS) == [*DATA[:22], *[None] * 18]
    push(store, BLOCKS[22:])
    assert store.read_many(CIDS) == DATA


_ON_A_FULL_DISK = """
import sys
from pathlib import Path
from tests.nodes.test_packs import BLOCKS, CIDS, DATA, block, push
from ipfs_store.errors import StorageFailed
from ipfs_store.nodes.blockstore import BlockStore
from ipfs_store.nodes.collect import collect
from ipfs_store.nodes.pins import Pins
folder = Path(sys.argv[1])
store = BlockStore(folder / "store")
push(store, BLOCKS)
pins = Pins(store.path / "pins")
for cid in CIDS:
    pins.add(cid, "")
number = 1000
try:
    while True:
        number += 50
        store.write_many([block(each, 4000) for each in range(number, number + 50)])
except StorageFailed as error:
    assert "No space left" in error.message and "gc" in error.hint
with (folder / "other").open("wb", buffering=0) as file:
    try:
        while file.write(bytes(4096)):
            pass
    except OSError:
        pass
assert collect(store, pins).blocks > 1000
assert store.read_many(CIDS) == DATA and store.stats().blocks == len(CIDS)
push(store, [block(number, 4000)])
store.close()
"""


def test_a_collection_makes_room_on_a_disk_that_is_full(tmp_path: Path) -> None:
    require_root()
    full = 'mount -t tmpfs -o size=24m none "$1" && exec "$2" -c "$3" "$1"'  # gone with the process
    command = ["unshare", "--mount", "sh", "-c", full, "sh", str(tmp_path), sys.executable, _ON_A_FULL_DISK]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
