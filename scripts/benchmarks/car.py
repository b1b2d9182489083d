"""Images as CAR files: written and read by us, beside what Kubo's own `dag export` and `dag import` take for the same blocks.

One image of 32 MB of noise in 500 files, so that nothing depends on compression; a second version of it with one file changed.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ipfs_store.cli.run import run as run_command
from scripts.benchmarks.rows import Row
from tests.kubo import KuboDaemon
from tests.sources.made import MadeImage, layout_files, named, write_tar

_FILES, _SIZE = 500, 64_000
_COMMAND = [sys.executable, "-c", "from ipfs_store.cli import main; raise SystemExit(main())"]


def run() -> list[Row]:
    """Export and import with either node, memory, and the size of an update."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        with KuboDaemon(folder / "kubo") as kubo:
            return _rows(folder, kubo)


def _rows(folder: Path, kubo: KuboDaemon) -> list[Row]:
    embedded = ["--node", "embedded", "--node-path", str(folder / "node")]
    ours = ["--node", f"kubo:{kubo.api}"]
    one, two = (_cli(*embedded, "ipfs-push", "-q", str(_archive(folder, version))) for version in (1, 2))
    car, update = folder / "image.car", folder / "update.car"
    rows: list[Row] = []
    written = _best(lambda: _here(*embedded, "export", "-q", "-o", str(car), one))
    size = car.stat().st_size / 1e6
    _cli(*embedded, "export", "-q", "-o", str(update), "--have", one, two)

    # Into Kubo: by its own command first, whose blocks then go again.
    root = _root(embedded, one)
    theirs_in, ours_in = [], []
    for _ in range(2):
        theirs_in.append(_timed(lambda: kubo.run("dag", "import", str(car))))
        theirs_out = _best(lambda: (folder / "kubo.car").write_bytes(kubo.run("dag", "export", root)))
        ours_out = _best(lambda: _here(*ours, "export", "-q", "-o", str(folder / "ours.car"), root))
        _empty(kubo)
        ours_in.append(_timed(lambda: _here(*ours, "import", "-q", str(car))))
        _empty(kubo)
    into = min(_timed(lambda number=number: _here("--node", "embedded", "--node-path", str(folder / f"to{number}"), "import", "-q", str(car))) for number in range(2))  # type: ignore[misc]  # fmt: skip
    again = _best(lambda: _here("--node", "embedded", "--node-path", str(folder / "to0"), "import", "-q", str(car)))
    memory = _memory("--node", "embedded", "--node-path", str(folder / "to3"), "import", "-q", str(car))
    exporting = _memory(*embedded, "export", "-q", "-o", "/dev/null", one)
    rows.append(Row("export, embedded (reference: ipfs dag export)", "MB/s", size / written, size / theirs_out, 1.0, at_least=True))
    rows.append(Row("export, Kubo", "MB/s", size / ours_out, size / theirs_out))
    rows.append(Row("import, embedded (reference: ipfs dag import)", "MB/s", size / into, size / min(theirs_in), 1.0, at_least=True))
    rows.append(Row("import, Kubo", "MB/s", size / min(ours_in), size / min(theirs_in)))
    rows.append(Row("import again (reference: the first time)", "seconds", again, into))
    rows.append(Row("import, embedded", "MB of memory", memory, target=200))
    rows.append(Row("export, embedded", "MB of memory", exporting, target=200))
    rows.append(Row("update, one of 500 files changed (reference: all)", "bytes", update.stat().st_size, car.stat().st_size, 0.02))
    return rows


def _archive(folder: Path, version: int) -> Path:
    noise = random.Random(1)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for number in range(_FILES):
            info = tarfile.TarInfo(f"files/{number:04}")
            info.size = _SIZE
            data = noise.randbytes(_SIZE)
            archive.addfile(info, io.BytesIO(data if version == 1 or number != _FILES // 2 else data[::-1]))
    image = MadeImage([out.getvalue()])
    return write_tar(
        folder / f"{version}.tar", layout_files([image.descriptor(**named("1", f"docker.io/bench/car:{version}"))], image.blobs)
    )


def _root(node: list[str], cid: str) -> str:
    return str(json.loads(_cli(*node, "inspect", "--json", cid))["root"])


def _empty(kubo: KuboDaemon) -> None:
    for line in kubo.run("pin", "ls", "--type=recursive", "-q").decode().split():
        kubo.run("pin", "rm", line)
    kubo.run("repo", "gc", "-q")


def _cli(*arguments: str) -> str:
    done = subprocess.run([*_COMMAND, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.strip()


def _here(*arguments: str) -> None:
    """In this process: what is measured is the work, and not the start of Python."""
    with contextlib.redirect_stdout(io.StringIO()):
        status = run_command(arguments)
    if status:
        raise RuntimeError(f"ipfs-store {' '.join(arguments)}: status {status}")


def _timed(work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def _best(work: Callable[[], object]) -> float:
    return min(_timed(work) for _ in range(2))


def _memory(*arguments: str) -> float:
    """MB at the most; VmHWM, for what getrusage says begins with the memory of whoever started the process."""
    code = (
        "import re; from pathlib import Path; from ipfs_store.cli import main; main(); "
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / 1000
