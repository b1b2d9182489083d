"""The demonstration: its table, and that it leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.stage import docker_archive, vector_layers
from tests.patience import PATIENCE, until
from tests.requirements import require_fuse, require_tool

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.containerd]
DEMO = Path(__file__).parents[2] / "scripts/demo.py"
SLEEP = str(100_000 + os.getpid())
"""Seconds; like no other program's on this machine."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_fuse()
    require_tool("containerd")
    require_tool("runc")
    work = tmp_path_factory.mktemp("demo")
    return docker_archive(work / "image.tar", vector_layers(work))


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the demonstrations of this test are, and nothing of them is left."""
    made = Path(tempfile.mkdtemp(prefix="demo-", dir="/var/tmp"))  # short, for sockets
    monkeypatch.setenv("TMPDIR", str(made))
    yield made
    assert _left(made) == set()
    made.rmdir()


def _left(folder: Path) -> set[str]:
    """Folders, mounts and processes of demonstrations."""
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line}
    processes = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command:
            processes.add(command)
    return {str(path) for path in folder.iterdir()} | mounts | processes


def start(image: Path, *command: str) -> subprocess.Popen[str]:
    command = (sys.executable, DEMO, "--image", image, "--", *(command or ("cat", "/etc/hostname")))
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "100"})


def test_it_prints_what_the_container_said_and_what_it_took(image: Path) -> None:
    out, err = start(image).communicate(timeout=PATIENCE)
    assert "first run: vector" in out and "second run: vector" in out, err
    for row in ("convert", "push", "pull", "first run", "second run", "image", "fetched", "files touched"):
        assert f"│ {row} " in out


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("pushing ", signal.SIGINT),
        ("image CID ", signal.SIGINT),
        ("pulling it from a second one", signal.SIGINT),
        ("pulling it from a second one", signal.SIGTERM),
        ("first run", signal.SIGINT),
    ],
)
def test_it_cleans_up_when_it_is_stopped(image: Path, moment: str, number: signal.Signals) -> None:
    process = start(image)
    stream = process.stdout if moment == "first run" else process.stderr
    assert stream is not None
    assert any(moment in line for line in stream), "it ended before that"
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, out + err


def test_a_container_that_runs_when_it_is_stopped_ends(image: Path) -> None:
    process = start(image, "sleep", SLEEP)
    try:
        until(lambda: _sleeps() or process.poll() is not None, "the container does not run")
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, out + err
    assert not _sleeps()


def _sleeps() -> bool:
    """Whether the container's program runs."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes() == b"sleep\0%s\0" % SLEEP.encode():
                return True
        except OSError:
            continue
    return False


def test_an_image_that_is_none_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "no-image.tar").write_bytes(b"not a tar")
    process = start(tmp_path / "no-image.tar")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "no-image.tar" in err.splitlines()[-1] and "Traceback" not in err
