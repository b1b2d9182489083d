"""The command line, in this process for speed and in one of its own where signals, pipes and terminals matter."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ipfs_store.cli.run import run
from tests.requirements import require_root
from tests.sources.made import MadeImage, layout_files, named, tar, write_tar

COMMAND = [sys.executable, "-c", "from ipfs_store.cli import main; raise SystemExit(main())"]
NAME = "docker.io/library/thing:1"


@dataclass(frozen=True)
class Done:
    """What a command left."""

    status: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode().strip()


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home, a node and a scratch folder of the test's own; nothing may stay in the latter."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for name in [name for name in os.environ if name.startswith(("IPFS_", "DOCKER_", "REGISTRY_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setenv("IPFS_STORE_MEMORY", str(tmp_path / "memory"))
    monkeypatch.setenv("IPFS_STORE_NODE", "embedded")
    monkeypatch.setenv("IPFS_STORE_NODE_PATH", str(tmp_path / "node"))
    yield tmp_path
    assert list(scratch.iterdir()) == []


@pytest.fixture
def ipfs_store(capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Done]:
    """Runs a command line in this process."""

    def running(*arguments: object) -> Done:
        capfdbinary.readouterr()
        status = run([str(argument) for argument in arguments])
        out, err = capfdbinary.readouterr()
        return Done(status, out, err.decode())

    return running


def start(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    """Starts a command line in a process of its own, its output piped."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*COMMAND, *map(str, arguments)], **(pipes | options))


def shown_on_a_terminal(*arguments: object) -> tuple[int, bytes, bytes]:
    """Status and standard output of a command whose standard error is a terminal, and what that showed."""
    ours, theirs = pty.openpty()
    process = start(*arguments, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the terminal's last user has gone
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    out, _ = process.communicate()
    return process.returncode, out, shown


@pytest.fixture
def made() -> MadeImage:
    """An image of two layers, one of them larger than a chunk."""
    return MadeImage([tar({"big": bytes(range(256)) * 3000, "etc/hello": b"hello"}), tar({"etc/second": b"second"})])


@pytest.fixture
def archive(machine: Path, made: MadeImage) -> Path:
    return write_tar(machine / "image.tar", layout_files([made.descriptor(**named("1", NAME))], made.blobs))


@pytest.fixture
def small_disk(machine: Path) -> Iterator[Path]:
    """A folder on a disk of 1 MiB."""
    require_root()
    folder = machine / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)
