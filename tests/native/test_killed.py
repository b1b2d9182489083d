"""Nobody is kept alive by waiting for us: with the network away, SIGKILL ends whoever waits, wherever it waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter.dataplane.client import DataPlane
from tests.dataplane.waiting import WAYS, waiting
from tests.native.conftest import Native, noise
from tests.patience import PATIENCE, until

FILES = {"file": noise("large", 3 << 20), "file.small": noise("small", 30_000)}


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
    native.dataplane = DataPlane(replace(native.dataplane.launch, read_ahead_kib=read_ahead_kib))
    native.dataplane.start()
    root = root_of(native, mode)
    before = native.reads()
    with waiting(way, root / "file", lambda: native.reads() > before) as process:
        process.kill()
        assert process.wait(PATIENCE) == -signal.SIGKILL
    let_go(native, root)


@pytest.mark.parametrize("mode", ["native", "portable"])
@pytest.mark.parametrize("way", WAYS)
def test_it_dies_as_well_if_the_data_plane_is_another_by_then(native: Native, mode: str, way: str) -> None:
    root = root_of(native, mode)
    before = native.reads()
    with waiting(way, root / "file", lambda: native.reads() > before) as process:
        before = native.reads()
        os.kill(native.dataplane.status_of_holder()["worker"], signal.SIGKILL)
        until(lambda: native.reads() > before or process.poll() is not None)
        assert process.poll() is None
        process.kill()
        assert process.wait(PATIENCE) == -signal.SIGKILL
    let_go(native, root)


@pytest.mark.parametrize("mode", ["native", "portable"])
@pytest.mark.parametrize("way", ["lookup of a small file", "read", "page fault"])
def test_one_of_two_that_wait_for_the_same_file_dies_and_the_other_gets_it(native: Native, mode: str, way: str) -> None:
    """The second is known to the kernel alone."""
    root = root_of(native, mode)
    before = native.reads()
    with waiting(way, root / "file", lambda: native.reads() > before) as first:
        code = f"path = {str(root / 'file')!r}\nprint('begun', flush=True)\n{WAYS[way]}"
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as second:
            assert second.stdout is not None and second.stdout.readline() == b"begun\n"
            until(lambda: Path(f"/proc/{second.pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"D")
            assert second.poll() is None
            second.kill()
            assert second.wait(PATIENCE) == -signal.SIGKILL
        assert first.poll() is None
        native.faults("ok")
        native.let_go()
        assert first.wait(PATIENCE) == 0
    assert (root / "file").read_bytes() == FILES["file"]
    assert (root / "file.small").read_bytes() == FILES["file.small"]
