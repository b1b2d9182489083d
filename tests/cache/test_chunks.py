"""Chunks on disk: what comes out is what went in, or nothing."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.cache import Candidate, ChunkCache, RecentChunks, Room
from tests.requirements import require_root


def chunk(number: int, size: int = 5000) -> tuple[bytes, bytes]:
    data = hashlib.sha256(str(number).encode()).digest() * (size // 32 + 1)
    return hashlib.sha256(data[:size]).digest(), data[:size]


def file_of(cache: ChunkCache, digest: bytes) -> Path:
    (found,) = cache.folder.rglob(digest.hex())
    return found


def bounded(folder: Path, max_bytes: int) -> ChunkCache:
    cache = ChunkCache(folder, Room(folder, max_bytes=max_bytes))
    cache.room.candidates = lambda: [Candidate(False, used, size, path) for used, size, path in cache.files()]
    return cache


@pytest.fixture
def cache(tmp_path: Path) -> ChunkCache:
    return ChunkCache(tmp_path / "cache")


def test_a_chunk_is_there_for_the_next_process(cache: ChunkCache) -> None:
    digest, data = chunk(1)
    assert cache.get(digest, len(data)) is None
    cache.put(digest, data)
    assert ChunkCache(cache.folder).get(digest, len(data)) == data


@pytest.mark.parametrize("damage", ["bit", "cut", "grown", "empty"])
def test_a_damaged_chunk_is_dropped_and_can_be_kept_again(cache: ChunkCache, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    digest, data = chunk(1)
    cache.put(digest, data)
    path = file_of(cache, digest)
    path.write_bytes({"bit": bytes([data[0] ^ 1]) + data[1:], "cut": data[:-1], "grown": data + b"x", "empty": b""}[damage])
    assert cache.get(digest, len(data)) is None
    assert not path.exists()
    assert digest.hex() in caplog.text
    cache.put(digest, data)
    assert cache.get(digest, len(data)) == data


def test_a_wrong_size_gets_nothing_and_harms_nobody(cache: ChunkCache) -> None:
    """A hostile TOC may promise another image's digest with a smaller or larger size."""
    digest, data = chunk(1)
    cache.put(digest, data)
    assert cache.get(digest, 10) is None
    assert cache.get(digest, len(data) + 1) is None
    assert cache.get(digest, len(data)) == data


def test_a_symbolic_link_in_the_place_of_a_chunk_is_not_followed(cache: ChunkCache, tmp_path: Path) -> None:
    digest, data = chunk(1)
    cache.put(digest, data)
    path = file_of(cache, digest)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert cache.get(digest, len(data)) is None


def test_beyond_the_limit_the_least_recently_used_go(tmp_path: Path) -> None:
    small = bounded(tmp_path, 100 * 8192)
    for number in range(90):
        digest, data = chunk(number)
        small.put(digest, data)
        os.utime(file_of(small, digest), (number, number))
    used_again, data = chunk(0)
    assert small.get(used_again, len(data)) == data  # touched: its time was long ago
    for number in range(90, 110):
        small.put(*chunk(number))
    left = {number for number in range(110) if small.get(chunk(number)[0], 5000) is not None}
    assert small.room.used <= small.room.max_bytes
    assert 0 in left
    assert left >= set(range(90, 110))
    assert not left & set(range(1, 11))


def test_a_cache_that_was_not_closed_is_counted_at_the_start(cache: ChunkCache) -> None:
    for number in range(20):
        cache.put(*chunk(number))
    (cache.folder / "tmp" / "999999999.1").write_bytes(b"half a chunk")
    after = ChunkCache(cache.folder)
    after.count()
    assert after.room.used == 20 * 8192
    assert list((cache.folder / "tmp").iterdir()) == []


def test_a_cache_made_smaller_is_emptied_to_its_new_size(cache: ChunkCache) -> None:
    for number in range(20):
        cache.put(*chunk(number))
    after = bounded(cache.folder, 10 * 8192)
    after.count()
    after.room.trim()
    assert after.room.used == 9 * 8192
    assert len([path for path in (cache.folder / "chunks").rglob("*") if path.is_file()]) == 9


def test_chunks_of_a_scope_are_found_in_it_alone(cache: ChunkCache) -> None:
    digest, data = chunk(1)
    cache.put(digest, data, b"one")
    assert cache.get(digest, len(data), b"one") == data
    assert cache.has(digest, b"one")
    for scope in (b"", b"two"):
        assert cache.get(digest, len(data), scope) is None
        assert not cache.has(digest, scope)


def test_a_folder_emptied_by_hand_is_made_again(cache: ChunkCache) -> None:
    cache.put(*chunk(1))
    for folder in ("chunks", "tmp"):
        subprocess.run(["rm", "-r", cache.folder / folder], check=True)
    digest, data = chunk(2)
    cache.put(digest, data)
    assert cache.get(digest, len(data)) == data


def test_many_threads_keep_and_read_the_same_chunks(cache: ChunkCache) -> None:
    cache.count()

    def work(number: int) -> bool:
        digest, data = chunk(number % 7)
        cache.put(digest, data)
        return cache.get(digest, len(data)) == data

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(400)))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    require_root()
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.root
def test_a_full_disk_costs_one_warning_and_no_error(tiny_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cache = ChunkCache(tiny_disk)
    for number in range(40):
        cache.put(*chunk(number))
    kept = [number for number in range(40) if cache.get(chunk(number)[0], 5000) is not None]
    assert 0 < len(kept) < 40
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    assert list((tiny_disk / "tmp").iterdir()) == []
    for number in kept:
        file_of(cache, chunk(number)[0]).unlink()
    digest, data = chunk(99)
    cache.put(digest, data)
    assert cache.get(digest, len(data)) == data


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40)), max_size=60))
def test_recent_chunks_stay_in_their_bounds_and_keep_the_latest(puts: list[tuple[int, int]]) -> None:
    recent = RecentChunks(max_bytes=64)
    for key, size in puts:
        recent.put(key, bytes([key]) * size)
        assert recent.get(key) == bytes([key]) * size
        assert recent.used <= 64
    sizes = [data for key in range(10) if (data := recent.get(key)) is not None]
    assert recent.used == sum(map(len, sizes))


def test_one_chunk_over_the_limit_is_kept_alone() -> None:
    recent = RecentChunks(max_bytes=10)
    recent.put("small", b"123")
    recent.put("large", bytes(100))
    assert recent.get("large") == bytes(100)
    assert recent.get("small") is None
