"""Nobody is kept alive by waiting for us: with the network away, SIGKILL ends whoever waits, wherever it waits."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from snapshotter.dataplane.client import DataPlane
from tests.native.conftest import Native, noise

LARGE, SMALL = noise("large", 3 << 20), noise("small", 30_000)

WAYS = {
    "read": "import os; os.read(os.open(path, os.O_RDONLY), 100_000)",
    "pread far inside": "import os; os.pread(os.open(path, os.O_RDONLY), 10, 2_000_000)",
    "direct read": "import os, mmap; os.preadv(os.open(path, os.O_RDONLY | os.O_DIRECT), [mmap.mmap(-1, 1 << 16)], 0)",
    "read without read-ahead": "import os; f = os.open(path, os.O_RDONLY); os.posix_fadvise(f, 0, 0, os.POSIX_FADV_RANDOM); os.read(f, 4096)",
    "page fault": "import os, mmap; mmap.mmap(os.open(path, os.O_RDONLY), 0, prot=mmap.PROT_READ)[1_000_000]",
    "lookup of a small file": "open(path + '.small', 'rb')",
    "copy up": "open(path + '.small', 'ab')",
}


def patient(native: Native, **changes: object) -> None:
    """With a data plane that waits for its source longer than any test does."""
    native.dataplane = DataPlane(replace(native.dataplane.launch, give_up=600.0, **changes))  # type: ignore[arg-type]
    native.dataplane.start()


@pytest.mark.parametrize(("way", "read_ahead_kib"), [*((way, 1024) for way in WAYS), ("read", 0), ("page fault", 0)])
def test_a_process_that_waits_dies_of_sigkill(native: Native, way: str, read_ahead_kib: int) -> None:
    patient(native, read_ahead_kib=read_ahead_kib)
    root = native.root("killed", {"file": LARGE, "file.small": SMALL}, chunk_size=65_536)
    native.faults("hold")
    before = native.reads()
    code = f"path = {str(root / 'file')!r}\nprint('begun', flush=True)\n{WAYS[way]}"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as waiting:
        assert waiting.stdout is not None and waiting.stdout.readline() == b"begun\n"
        while native.reads() == before:
            assert waiting.poll() is None
        waiting.kill()
        assert waiting.wait(30) == -signal.SIGKILL
    native.faults("ok")
    native.let_go()
    assert (root / "file").read_bytes() == LARGE
    assert (root / "file.small").read_bytes() == SMALL
