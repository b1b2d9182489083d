"""Whether anything waits that need not: the steps of the data plane's event loop, and processes that are killed while they wait for us.

Needs root and 300 MB below /var/tmp; two minutes.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts.benchmarks.dataplane import push
from scripts.benchmarks.rows import Row
from snapshotter.dataplane.client import DataPlane, Launch
from tests.dataplane.waiting import WAYS, waiting
from tests.native.conftest import Native, a_plane, noise

_LAYERS, _FILES, _AT_A_TIME = 10, 30_000, 4
_LONGEST_STEP = 0.02
_LONGEST_DYING = 0.5
_KILLED = {"file": noise("large", 3 << 20), "file.small": noise("small", 30_000)}


def run() -> list[Row]:
    """All rows."""
    return [*_steps(), *_dying("native"), *_dying("portable")]


def _steps() -> list[Row]:
    top = Path(tempfile.mkdtemp(prefix="bench-liveness-", dir="/var/tmp"))
    try:
        layers = [
            push(top, f"many{number}", {f"d{n // 40}/n{number}-{n}": b"%d %d" % (number, n) for n in range(_FILES)})
            for number in range(_LAYERS)
        ]
        rows = []
        for mode in ("native", "portable"):
            with _stepped(top, mode) as (dataplane, steps), ThreadPoolExecutor(_AT_A_TIME) as pool:
                mount = dataplane.mount_native if mode == "native" else dataplane.mount
                list(pool.map(lambda at, mount=mount: mount(at[0], at[1]), enumerate(layers, 1)))
                longest = [max(column) for column in zip(*((float(x) for x in line.split()[:2]) for line in steps()), strict=True)]
            case = f"{mode}: longest step while {_LAYERS} layers of {_FILES:,} files are mounted, {_AT_A_TIME} at a time"
            rows += [Row(case, "seconds", longest[0], target=_LONGEST_STEP), Row(case, "of a processor", longest[1], target=_LONGEST_STEP)]
        return rows
    finally:
        shutil.rmtree(top)


@contextlib.contextmanager
def _stepped(top: Path, mode: str) -> Iterator[tuple[DataPlane, Callable[[], list[str]]]]:
    folder = top / mode
    folder.mkdir()
    dataplane = DataPlane(
        Launch(
            mountpoint=folder / "mount", control=folder / "control.sock", cache=folder / "cache", node="embedded", node_path=top / "node",
            log=folder / "log", program=(sys.executable, "-m", "scripts.benchmarks.material.stepped", str(folder / "steps")),
        )
    )  # fmt: skip
    try:
        dataplane.start()
        yield dataplane, lambda: (folder / "steps").read_text().splitlines()
    finally:
        dataplane.stop()


def _dying(mode: str) -> list[Row]:
    """From SIGKILL to the end of a process that waits for a source which does not answer."""
    rows = []
    with a_plane() as native:
        for number, way in enumerate(WAYS):
            root = (native.root if mode == "native" else native.portable_root)(f"killed{number}", _fresh(number), chunk_size=65_536)
            (root / "file").chmod(0o755)
            native.faults("hold")
            before = native.reads()
            with waiting(way, root / "file", lambda before=before: native.reads() > before) as process:  # type: ignore[misc]
                start = time.perf_counter()
                process.kill()
                process.wait()
                rows.append(Row(f"{mode}: killed in {way}", "seconds", time.perf_counter() - start, target=_LONGEST_DYING))
            _let_go(native)
    return rows


def _fresh(number: int) -> dict[str, bytes]:
    return {name: bytes([number]) + data for name, data in _KILLED.items()}


def _let_go(native: Native) -> None:
    native.faults("ok")
    native.let_go()
