"""The store of contents: complete files only, bounded, and nothing believed that a power failure may have taken."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipfs_store.errors import StorageFailed
from snapshotter.cache import Candidate, ContentStore, Room
from tests.requirements import require_root

MIB = 1 << 20


def name(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def all_candidates(store: ContentStore, wanted: Callable[[str], bool] = lambda path: False) -> Callable[[], list[Candidate]]:
    return lambda: [Candidate(wanted(file.path), file.epoch, file.size, file.path) for file in store.files()]


def test_what_has_a_name_is_complete(tmp_path: Path) -> None:
    store = ContentStore(tmp_path / "c")
    store.put(name("a"), [b"one", b"two"])
    assert Path(store.path(name("a"))).read_bytes() == b"onetwo"
    assert os.stat(store.path(name("a"))).st_mode & 0o777 == 0o444
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o700
    assert not list((tmp_path / "c/tmp").iterdir())


def test_a_large_file_appears_when_its_last_chunk_does(tmp_path: Path) -> None:
    store = ContentStore(tmp_path / "c")
    pieces = [bytes([number]) * 1000 for number in range(5)]
    for number in (4, 0, 2, 2, 3):
        store.write_chunks(name("a"), 5000, 5, [(number, 1000 * number, pieces[number])])
    assert not store.has(name("a"))
    store.write_chunks(name("a"), 5000, 5, [(1, 1000, pieces[1])])
    assert Path(store.path(name("a"))).read_bytes() == b"".join(pieces)
    assert not list((tmp_path / "c/partial").iterdir())


def test_chunks_of_another_process_count_once_they_were_hashed(tmp_path: Path) -> None:
    pieces = [bytes([number]) * 5000 for number in range(3)]
    ContentStore(tmp_path / "c").write_chunks(name("a"), 15_000, 3, [(0, 0, pieces[0])])
    store = ContentStore(tmp_path / "c")
    for number in (1, 2):
        store.write_chunks(name("a"), 15_000, 3, [(number, 5000 * number, pieces[number])])
    assert not store.has(name("a"))
    digest = hashlib.sha256(pieces[0]).digest()
    assert store.read_chunk(name("a"), 3, 0, 0, 5000, hashlib.sha256(b"else").digest()) is None
    assert store.read_chunk(name("a"), 3, 0, 0, 5000, digest) == pieces[0]
    assert Path(store.path(name("a"))).read_bytes() == b"".join(pieces)
    assert store.read_chunk(name("a"), 3, 0, 0, 5000, digest) == pieces[0]


def test_a_partial_file_that_was_evicted_is_begun_anew(tmp_path: Path) -> None:
    store = ContentStore(tmp_path / "c")
    for number in range(2):
        store.write_chunks(name("a"), 12_288, 3, [(number, 4096 * number, b"x" * 4096)])
        (tmp_path / "c/partial" / name("a").hex()).unlink()
    store.write_chunks(name("a"), 12_288, 3, [(2, 8192, b"x" * 4096)])
    assert not store.has(name("a"))  # two chunks are holes


def test_many_writers_of_one_file_complete_it_once(tmp_path: Path) -> None:
    store = ContentStore(tmp_path / "c")
    pieces = [os.urandom(3000) for _ in range(60)]

    def write(numbers: list[int]) -> None:
        for number in numbers:
            store.write_chunks(name("a"), 180_000, 60, [(number, 3000 * number, pieces[number])])

    threads = [threading.Thread(target=write, args=(list(range(start, 60, 4)) + list(range(60)),)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Path(store.path(name("a"))).read_bytes() == b"".join(pieces)


def test_what_nobody_wants_goes_first_and_then_what_came_first(tmp_path: Path) -> None:
    store = ContentStore(tmp_path / "c", Room(tmp_path, max_bytes=10 * MIB))
    wanted = {store.path(name(str(number))) for number in range(3)}
    store.room.candidates = all_candidates(store, wanted.__contains__)
    for number in range(14):
        store.put(name(str(number)), [bytes(MIB)])
        store.sync()  # an epoch for each, so that their order is known
    assert store.room.used <= 10 * MIB
    left = {number for number in range(14) if store.has(name(str(number)))}
    assert {0, 1, 2, 13} <= left
    assert sorted(left)[3] == max(left) - len(left) + 4  # the others are the youngest


def test_bytes_that_are_held_count_and_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    store = ContentStore(tmp_path / "c", Room(tmp_path, max_bytes=4 * MIB))
    store.room.candidates = all_candidates(store)
    store.put(name("held"), [b"h" * 3 * MIB])
    with Path(store.path(name("held"))).open("rb") as file:
        with pytest.raises(StorageFailed, match="held by containers"):
            store.put(name("next"), [bytes(2 * MIB)])
        assert not store.has(name("held"))
        assert store.room.held == 3 * MIB
        assert file.read() == b"h" * 3 * MIB
        assert Room(tmp_path, max_bytes=4 * MIB).held == 3 * MIB  # the next process knows
    again = ContentStore(tmp_path / "c", Room(tmp_path, max_bytes=4 * MIB))
    again.put(name("next"), [bytes(2 * MIB)])
    assert again.room.held == 0


def test_a_disk_that_is_full_up_to_the_reserve_takes_nothing(tmp_path: Path) -> None:
    store = ContentStore(tmp_path / "c", Room(tmp_path, reserve=1 << 60))
    with pytest.raises(StorageFailed):
        store.put(name("a"), [b"x"])
    assert not store.has(name("a"))
    assert store.room.used == 0


def _another_boot(folder: Path) -> None:
    marker = folder / "synced"
    marker.write_text("another-boot " + marker.read_text().split()[1])


def test_after_a_power_failure_only_what_was_synced_is_believed(tmp_path: Path) -> None:
    store = ContentStore(tmp_path / "c")
    store.put(name("synced"), [b"synced"])
    store.sync()
    for text in ("whole", "torn"):
        store.put(name(text), [text.encode()])
    store.write_chunks(name("large"), 2000, 2, [(0, 0, b"l" * 1000)])
    Path(store.path(name("torn"))).chmod(0o644)
    Path(store.path(name("torn"))).write_bytes(b"")
    _another_boot(tmp_path / "c")
    asked = []

    def check(content: bytes, path: Path) -> bool:
        asked.append(content)
        return path.read_bytes() == b"whole"

    again = ContentStore(tmp_path / "c")
    assert again.unproven(check) == (2, 1)
    assert set(asked) == {name("whole"), name("torn")}
    assert [again.has(name(text)) for text in ("synced", "whole", "torn")] == [True, True, False]
    assert not list((tmp_path / "c/partial").iterdir())
    assert ContentStore(tmp_path / "c").unproven(check) == (0, 0)


def test_after_a_kill_everything_is_believed(tmp_path: Path) -> None:
    store = ContentStore(tmp_path / "c")
    store.sync()
    store.put(name("a"), [b"a"])

    def check(content: bytes, path: Path) -> bool:
        raise AssertionError("nothing was lost")

    assert ContentStore(tmp_path / "c").unproven(check) == (0, 0)


def test_a_part_of_a_file_counts_by_what_it_has_and_goes_like_others(tmp_path: Path) -> None:
    store = ContentStore(tmp_path / "c", Room(tmp_path, max_bytes=8 * MIB))
    store.room.candidates = lambda: [Candidate(False, used, size, path) for used, size, path in store.partial.files()]
    for number in range(12):  # of files of 1 GiB each
        store.write_chunks(name(str(number)), 1 << 30, 1024, [(3, 3 * MIB, bytes(MIB))])
    assert 0 < store.room.used <= 8 * MIB
    assert store.room.used == store.partial.bytes_on_disk()


@pytest.mark.parametrize("left", [b"", b"\0" * 4096, b"zz 12\n", b"00ff 12\n", b"12"])
def test_a_note_of_what_is_held_that_a_power_failure_tore_stops_nobody(tmp_path: Path, left: bytes) -> None:
    (tmp_path / "held").write_bytes(left)
    assert Room(tmp_path).held == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    require_root()
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120m,mode=700", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.root
def test_the_reserve_stays_free_whoever_fills_the_disk(disk: Path) -> None:
    reserve, between_looks = 40 * MIB, 33 * MIB
    store = ContentStore(disk / "c", Room(disk / "c", reserve=reserve))
    store.room.candidates = all_candidates(store)

    def free() -> int:
        status = os.statvfs(disk)
        return status.f_bavail * status.f_frsize

    for number in range(150):
        store.put(name(str(number)), [bytes(MIB)])
        store.sync()  # an epoch for each, so that their order is known
        assert free() >= reserve - between_looks
    kept = [number for number in range(150) if store.has(name(str(number)))]
    assert kept == list(range(kept[0], 150))
    (disk / "others").write_bytes(bytes(6 * MIB))
    for number in range(150, 190):
        store.put(name(str(number)), [bytes(MIB)])
    assert free() >= reserve - between_looks
    assert store.has(name("189"))
