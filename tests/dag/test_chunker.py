"""Leaves that know where members end: any blob, any member sizes; what is equal gives equal leaves, and a change stays where it is."""

from __future__ import annotations

import gzip
import random
import tarfile
import zlib
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfs_store.dag.chunker import MAX_LEAF, TARGET, Chunker, member_leaves, member_starts
from ipfs_store.errors import InvalidInput
from ipfs_store.formats.options import WriteOptions
from ipfs_store.formats.writer import write_layer

VECTORS = Path(__file__).parents[1] / "vectors/estargz"

small = st.lists(st.binary(min_size=1, max_size=400), max_size=60)
# (seed, bytes): members of up to 2.5 MiB without hypothesis having to draw their bytes.
any_size = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([1, 100, 5_000, 40_000, 200_000, MAX_LEAF, MAX_LEAF + 1, 2_500_000])), max_size=12
)


def leaves_of(parts: list[bytes], target: int = TARGET) -> list[bytes]:
    starts = [0, *accumulate(map(len, parts))][:-1]
    return [bytes(leaf) for leaf in member_leaves(memoryview(b"".join(parts)), starts, target)]


def list_of_starts(data: memoryview) -> list[int]:
    return list(member_starts(data))


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


@given(small, st.integers(16, 300))
def test_leaves_add_up_to_the_blob_and_end_where_members_end(parts: list[bytes], target: int) -> None:
    leaves = leaves_of(parts, target)
    assert b"".join(leaves) == b"".join(parts)
    assert set(accumulate(map(len, leaves))) <= set(accumulate(map(len, parts)))
    assert all(leaves)


@settings(max_examples=15)
@given(any_size)
def test_no_leaf_is_longer_than_what_every_node_takes(sizes: list[tuple[int, int]]) -> None:
    parts = [noise(size, seed) for seed, size in sizes]
    leaves = leaves_of(parts)
    assert b"".join(leaves) == b"".join(parts)
    assert max(map(len, leaves), default=0) <= MAX_LEAF
    ends = set(accumulate(map(len, leaves)))
    for end, part in zip(accumulate(map(len, parts)), parts, strict=True):
        if len(part) >= TARGET:
            assert {end - len(part), end} - {0} <= ends, "a large member begins and ends leaves of its own"


@settings(max_examples=15)
@given(any_size, any_size, st.sampled_from([40_000, 200_000, 2_500_000]))
def test_a_large_member_gives_the_same_leaves_whatever_is_around_it(
    before: list[tuple[int, int]], behind: list[tuple[int, int]], size: int
) -> None:
    member = noise(size, 99)
    around = [noise(size, seed) for seed, size in before], [noise(size, seed) for seed, size in behind]
    alone = leaves_of([member])
    assert set(alone) <= set(leaves_of([*around[0], member, *around[1]]))


ALONE = TARGET // 4


def files(count: int, seed: int) -> list[bytes]:
    """Members as a layer has them: a header of some 120 bytes, then a file, most of them small."""
    numbers = random.Random(seed)
    parts = []
    for _ in range(count):
        parts += [numbers.randbytes(numbers.randrange(90, 160)), numbers.randbytes(int(numbers.lognormvariate(8, 1.5)) + 30)]
    return parts


def changes(parts: list[bytes], seed: int, size: range, other: range) -> Iterator[list[bytes]]:
    """``parts`` with one file, of so many bytes, in place of another."""
    numbers = random.Random(seed)
    candidates = [number for number in range(0, len(parts), 2) if len(parts[number + 1]) in size]
    for number in numbers.sample(candidates, 10):
        changed = [*parts]
        changed[number : number + 2] = [numbers.randbytes(120), numbers.randbytes(numbers.choice(other))]
        yield changed


@pytest.mark.parametrize("seed", range(20))
def test_a_changed_file_costs_three_leaves_at_most(seed: int) -> None:
    parts = files(600, seed)
    before = set(leaves_of(parts))
    assert len(before) > 100
    for small in changes(parts, seed, range(30, ALONE), range(30, ALONE)):
        assert len(set(leaves_of(small)) - before) <= 3
    for large in changes(parts, seed, range(ALONE, MAX_LEAF), range(ALONE, 100_000)):
        assert len(set(leaves_of(large)) - before) <= 3


@pytest.mark.parametrize("seed", range(20))
def test_a_file_that_becomes_large_or_small_divides_or_joins_two_groups(seed: int) -> None:
    parts = files(600, seed)
    before = set(leaves_of(parts))
    for grown in changes(parts, seed, range(30, ALONE), range(ALONE, 20_000)):
        assert len(set(leaves_of(grown)) - before) <= 5
    for shrunk in changes(parts, seed, range(ALONE, MAX_LEAF), range(30, ALONE)):
        assert len(set(leaves_of(shrunk)) - before) <= 5


@pytest.mark.parametrize("seed", range(5))
def test_a_file_added_or_removed_moves_nothing_else(seed: int) -> None:
    parts = files(600, seed)
    before = set(leaves_of(parts))
    number = 2 * random.Random(seed).randrange(600)
    assert len(set(leaves_of([*parts[:number], noise(120, 1), noise(5000, 2), *parts[number:]])) - before) <= 3
    assert len(set(leaves_of(parts[:number] + parts[number + 2 :])) - before) <= 3


def test_leaves_have_about_the_size_that_was_asked_for() -> None:
    parts = files(6000, 1)
    for target in (32 << 10, 64 << 10, 128 << 10):
        leaves = [len(leaf) for leaf in leaves_of(parts, target) if len(leaf) > 128]  # those that are blocks
        assert target / 3 < sum(leaves) / len(leaves) < target * 2


def test_equal_members_without_end_are_cut_all_the_same() -> None:
    leaves = leaves_of([b"x" * 200] * 20_000)
    assert max(map(len, leaves)) <= MAX_LEAF
    assert b"".join(leaves) == b"x" * 4_000_000


def test_the_inside_of_a_large_member_finds_back_behind_a_change() -> None:
    member = noise(8 << 20, 4)
    changed = member[: 3 << 20] + b"inserted" + member[3 << 20 :]
    before, after = leaves_of([member]), leaves_of([changed])
    assert len(set(after) - set(before)) <= 2
    assert len(after) > 20


def test_a_run_of_one_byte_is_cut() -> None:
    assert [len(leaf) for leaf in leaves_of([bytes(3 << 20)])] == [MAX_LEAF] * 3


@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=20), st.sampled_from([1, 6, 9]))
def test_gzip_members_are_found(contents: list[bytes], level: int) -> None:
    parts = [gzip.compress(content, level, mtime=0) for content in contents]
    assert list_of_starts(memoryview(b"".join(parts))) == [0, *accumulate(map(len, parts))][:-1]


@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=20))
def test_zstd_frames_are_found(contents: list[bytes]) -> None:
    parts = [zstandard.compress(content) for content in contents]
    starts = set([0, *accumulate(map(len, parts))][:-1])
    assert starts <= set(list_of_starts(memoryview(b"".join(parts))))


@given(st.binary(max_size=300))
def test_any_other_blob_is_one_member(data: bytes) -> None:
    assert list_of_starts(memoryview(b"ustar" + data)) == [0]


def test_a_gzip_file_inside_of_a_member_is_no_member() -> None:
    # Stored, as what cannot be compressed further is: its header stands in the blob as it is, with another system's number.
    inner = gzip.compress(noise(30_000, 7), 9, mtime=0)
    outer = bytearray(gzip.compress(inner, 0, mtime=0))
    outer[9] = 255
    assert inner[:10] in outer
    assert list_of_starts(memoryview(bytes(outer * 3))) == [0, len(outer), 2 * len(outer)]


def test_the_members_that_we_write_are_found(tmp_path: Path) -> None:
    layer = tmp_path / "layer.tar"
    with tarfile.open(layer, "w") as tar:
        for number, size in enumerate((0, 10, 5000, 700_000)):
            (tmp_path / "file").write_bytes(noise(size, number))
            tar.add(tmp_path / "file", f"usr/share/{number}")
    written = write_layer(layer, tmp_path / "blob", WriteOptions())
    assert list_of_starts(memoryview((tmp_path / "blob").read_bytes())) == list(written.boundaries[:-1]), "all but the footer"


@pytest.mark.parametrize("name", ["default.blob", "chunk64k.blob", "zstd.blob", "skopeo-zstd.blob"])
def test_members_of_other_tools_are_found(name: str) -> None:
    blob = (VECTORS / name).read_bytes()
    starts = list_of_starts(memoryview(blob))
    assert len(starts) > 5
    if "zstd" not in name:
        for start, end in pairwise(starts):
            decoder = zlib.decompressobj(31)
            decoder.decompress(blob[start:end])
            assert decoder.eof
            assert not decoder.unused_data


@pytest.mark.parametrize(
    ("text", "chunker"),
    [
        ("member", Chunker()),
        ("member-65536", Chunker("member", 65536)),
        ("size", Chunker("size", 262144)),
        ("size-1024", Chunker("size", 1024)),
    ],
)
def test_a_rule_as_people_write_it(text: str, chunker: Chunker) -> None:
    assert Chunker.parse(text) == chunker
    assert Chunker.parse(str(chunker)) == chunker


@pytest.mark.parametrize(
    "text", ["", "rabin", "member-", "size--1", "size-0", "member-100", "size-1048577", "size-٣", "size-1k", "member-65536-1"]
)
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no chunker"):
        Chunker.parse(text)
