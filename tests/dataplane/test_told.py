"""ESTALE sends the kernel to the store, and is never the program's, whoever is killed and whatever is evicted meanwhile."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from pyfuse3 import FileNameT, FUSEError, InodeT, RequestContext

from snapshotter.dataplane import told as told_module
from snapshotter.dataplane.contents import ROOT, ContentTree
from snapshotter.dataplane.layers import Counters, NativeLayer
from snapshotter.dataplane.told import Told
from snapshotter.dataplane.waiters import Waiters
from snapshotter.metadata import ContentId
from tests.dataplane.test_candidates import Cache

ONE, OTHER = ContentId(b"1" * 32), ContentId(b"2" * 32)


class Layer:
    """A native layer whose contents are in the store."""

    def __init__(self, cache: Cache) -> None:
        self.index = cache.native["layer"]
        self.counters = Counters()


class Context:
    """A program without a process."""

    pid = 4_000_000


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    made = Cache(tmp_path, 1 << 40)
    made.add("layer", b"text" * 100)
    return made


@pytest.fixture
def data_plane(cache: Cache, tmp_path: Path) -> Callable[[], ContentTree]:
    """Another process each time."""

    def start() -> ContentTree:
        tree = ContentTree(cast("Any", None), cache.store, trio.CapacityLimiter(1), Waiters())
        tree.layers["layer"] = cast("NativeLayer", Layer(cache))
        tree.told = Told(tmp_path / "told")
        return tree

    return start


async def ask(tree: ContentTree, content: ContentId) -> int:
    """0, or the errno."""
    context = cast("RequestContext", Context())
    try:
        await tree.lookup(InodeT(ROOT + 1 + content[0]), FileNameT(content.hex().encode()), context)
    except FUSEError as error:
        return int(error.errno)
    return 0


@pytest.mark.parametrize("killed", [(), (0,), (1,), (2,), (0, 1, 2)])
async def test_the_program_gets_a_file_that_is_evicted_while_the_kernel_looks_again(
    killed: tuple[int, ...], cache: Cache, data_plane: Callable[[], ContentTree]
) -> None:
    content = cache.native["layer"].id(0)
    tree, answers = data_plane(), []
    for turn in range(3):
        answers.append(await ask(tree, content))
        if turn in killed:
            tree = data_plane()
        if turn == 1:
            cache.store.drop(content)
    assert answers == [errno.ESTALE, errno.ESTALE, 0]


def test_each_thread_and_content_is_counted_for_itself_and_over_a_kill(tmp_path: Path) -> None:
    told = Told(tmp_path / "told")
    assert told.times(7, ONE) == 1
    told.tell(7, ONE)
    told.tell(8, ONE)
    assert [told.times(7, ONE), told.times(7, ONE), told.times(8, ONE), told.times(7, OTHER)] == [2, 3, 2, 1]
    assert Told(tmp_path / "told").times(7, ONE) == 4


def test_what_is_long_ago_or_before_a_reboot_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(told_module.time, "monotonic", lambda: now)
    told = Told(tmp_path / "told")
    told.tell(7, ONE)
    now = 1100.0
    assert told.times(7, ONE) == 1
    now = 3.0
    assert told.times(7, ONE) == 1


def test_a_table_that_is_full_forgets_what_is_longest_ago(tmp_path: Path) -> None:
    told = Told(tmp_path / "told")
    for number in range(60_000):
        told.tell(number, ONE)
    assert all(told.times(number, ONE) == 2 for number in range(59_000, 60_000))
