"""Large files that are read in order, whose leaves are on this machine, or are not, or are damaged."""

from __future__ import annotations

import os

import pytest

from tests.native.conftest import Native, noise
from tests.patience import until

SIZE = 12 << 20


@pytest.mark.parametrize("leaves", ["here", "damaged", "elsewhere"])
def test_a_file_that_is_read_in_order_has_its_bytes(native: Native, leaves: str) -> None:
    data = noise("in order", SIZE)
    root = native.root("one", {"large": data})
    blob = (native.folder / "one.blob").read_bytes()
    if leaves != "elsewhere":
        (native.folder / "one.local").write_bytes(blob if leaves == "here" else bytes(byte ^ 1 for byte in blob))
    before = native.reads()
    assert (root / "large").read_bytes() == data
    assert (native.reads() == before) == (leaves == "here")


def test_what_follows_is_brought_before_anybody_asks(native: Native) -> None:
    root = native.root("one", {"large": noise("in order", SIZE)})
    (native.folder / "one.local").write_bytes((native.folder / "one.blob").read_bytes())
    with (root / "large").open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # the kernel reads nothing ahead
        for _ in range(4):
            file.read(128 << 10)
        until(lambda: native.status("one").fetched >= 1 << 20, "nothing is read ahead")
    assert native.status("one").read < 1 << 20
