"""Which files are read ahead of, and how far; ranges of a blob that came in pieces."""

from __future__ import annotations

import pytest

from snapshotter.dataplane.ahead import MOST, InOrder
from snapshotter.dataplane.pieces import Pieces

MIB = 1 << 20
FILE, OTHER = (1, 1), (1, 2)


def test_a_file_that_is_read_in_order_is_read_ahead_of_further_each_time_and_not_far_from_its_reader() -> None:
    files, size = InOrder(), 100 * MIB
    ahead = MIB
    assert files.following(FILE, 0, MIB, size) is None  # the first read says nothing
    lengths = []
    for read in range(MIB, size, MIB):
        found = files.following(FILE, read, read + MIB, size)
        if found is not None:
            start, end = found
            assert start == max(ahead, read + MIB)  # nothing is left out, nothing twice
            assert end <= read + 3 * MOST
            lengths.append(end - start)
            ahead = end
    assert ahead == size
    assert lengths[:3] == [MIB, 2 * MIB, MOST]


def test_pieces_that_overtake_each_other_are_in_order() -> None:
    files = InOrder()
    files.following(FILE, 0, MIB, 100 * MIB)
    files.following(FILE, MIB, 3 * MIB, 100 * MIB)
    assert files.following(FILE, 2 * MIB, 3 * MIB, 100 * MIB) is not None


def test_a_reader_who_jumps_about_is_not_read_ahead_of() -> None:
    files = InOrder()
    for start in (50, 3, 80, 20, 90):
        assert files.following(FILE, start * MIB, start * MIB + 4096, 100 * MIB) is None


def test_files_do_not_disturb_each_other() -> None:
    files = InOrder()
    files.following(FILE, 0, MIB, 100 * MIB)
    files.following(OTHER, 50 * MIB, 51 * MIB, 100 * MIB)
    assert files.following(FILE, MIB, 2 * MIB, 100 * MIB) == (2 * MIB, 3 * MIB)


def test_what_is_not_here_is_not_read_ahead() -> None:
    files = InOrder()
    files.following(FILE, 0, MIB, 100 * MIB)
    files.not_here(FILE)
    assert all(files.following(FILE, read * MIB, (read + 1) * MIB, 100 * MIB) is None for read in range(1, 100))


@pytest.mark.parametrize("cuts", [[], [1], [3, 4], [2, 5, 9]])
def test_a_range_is_the_same_however_the_pieces_are_cut(cuts: list[int]) -> None:
    whole = bytes(range(10))
    pieces = Pieces(100, [whole[start:end] for start, end in zip([0, *cuts], [*cuts, 10], strict=True)])
    assert (pieces.start, pieces.end) == (100, 110)
    for start in range(10):
        for length in range(1, 12):
            assert bytes(pieces.cut(100 + start, length)) == whole[start : start + length]
