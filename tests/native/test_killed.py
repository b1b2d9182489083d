"""Nobody is kept alive by waiting for us: with the network away, SIGKILL ends whoever waits, wherever it waits."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter.dataplane.client import DataPlane
from tests.dataplane.waiting import WAYS, waiting
from tests.native.conftest import Native, noise

FILES = {"file": noise("large", 3 << 20), "file.small": noise("small", 30_000)}


def patient(native: Native, **changes: object) -> None:
    """With a data plane that waits for its source longer than any test does."""
    native.dataplane = DataPlane(replace(native.dataplane.launch, give_up=600.0, **changes))  # type: ignore[arg-type]
    native.dataplane.start()


def root_of(native: Native, mode: str) -> Path:
    root = native.root("killed", FILES, chunk_size=65_536) if mode == "native" else native.portable_root("killed", FILES, chunk_size=65_536)
    for name in FILES:
        (root / name).chmod(0o755)  # of metadata alone: nothing is fetched
    native.faults("hold")
    return root


def let_go(native: Native, root: Path) -> None:
    native.faults("ok")
    native.let_go()
    for name, data in FILES.items():
        assert (root / name).read_bytes() == data


@pytest.mark.parametrize("mode", ["native", "portable"])
@pytest.mark.parametrize(("way", "read_ahead_kib"), [*((way, 1024) for way in WAYS), ("read", 0), ("page fault", 0)])
def test_a_process_that_waits_dies_of_sigkill(native: Native, mode: str, way: str, read_ahead_kib: int) -> None:
    patient(native, read_ahead_kib=read_ahead_kib)
    root = root_of(native, mode)
    before = native.reads()
    with waiting(way, root / "file", lambda: native.reads() > before) as process:
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
    let_go(native, root)


@pytest.mark.parametrize("mode", ["native", "portable"])
@pytest.mark.parametrize("way", WAYS)
def test_it_dies_as_well_if_the_data_plane_is_another_by_then(native: Native, mode: str, way: str) -> None:
    patient(native)
    root = root_of(native, mode)
    before = native.reads()
    with waiting(way, root / "file", lambda: native.reads() > before) as process:
        before = native.reads()
        os.kill(native.dataplane.status_of_holder()["worker"], signal.SIGKILL)
        while native.reads() == before:
            assert process.poll() is None
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
    let_go(native, root)
