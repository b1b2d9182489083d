"""The daemon as a process: one line for what is wrong, one daemon a folder, nothing left when it ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.dataplane.control import Mount, encode
from tests.integration.stage import BIN, ENVIRONMENT, Stage, stage
from tests.patience import until
from tests.requirements import require_fuse, require_root

pytestmark = [pytest.mark.root, pytest.mark.fuse]


@pytest.fixture
def on_stage() -> Iterator[Stage]:
    require_fuse()
    root = Path(tempfile.mkdtemp(prefix="daemon-", dir="/var/tmp"))
    try:
        with stage(root) as made:
            made.peer = "http://127.0.0.1:9"
            yield made
    finally:
        shutil.rmtree(root)


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "ipfs-snapshotter", *arguments], capture_output=True, text=True, env=ENVIRONMENT | environment)


def test_a_second_daemon_is_told_of_the_first(on_stage: Stage) -> None:
    on_stage.start_daemon()
    second = run("--config", on_stage.config)
    assert second.returncode == 1
    assert f"another ipfs-snapshotter (process {on_stage.status()['pid']}) runs on" in second.stderr
    assert on_stage.socket.stat().st_mode & 0o777 == 0o600


def test_stop_leaves_the_mount_and_stop_unmount_nothing(on_stage: Stage) -> None:
    on_stage.start_daemon()
    plane = on_stage.status()["dataplane"]["pid"]
    on_stage.end_daemon()
    assert not on_stage.socket.exists()
    assert os.path.ismount(on_stage.root / "snapshotter/layers")
    on_stage.start_daemon()
    assert on_stage.status()["dataplane"]["pid"] == plane
    assert on_stage.daemon("stop", "--unmount").returncode == 0
    assert not os.path.ismount(on_stage.root / "snapshotter/layers")
    status = on_stage.status()
    assert (status["pid"], status["dataplane"], status["layers"]) == (None, None, [])
    on_stage.ended()


def test_a_data_plane_that_is_killed_is_replaced(on_stage: Stage) -> None:
    on_stage.start_daemon()
    plane = on_stage.status()["dataplane"]["pid"]
    os.kill(plane, 9)
    until(lambda: (now := on_stage.status()["dataplane"]) and now["pid"] != plane)
    assert os.path.ismount(on_stage.root / "snapshotter/layers")


def test_a_layer_that_no_snapshot_has_is_let_go_of(on_stage: Stage) -> None:
    on_stage.start_daemon()
    registry = on_stage.root / "snapshotter/dataplane.layers"
    on_stage.end_daemon()
    registry.mkdir(exist_ok=True)
    (registry / "999").write_bytes(encode(Mount(999, "bafkqaaa", "", "", 1.0)))  # of a daemon that was killed between two steps
    on_stage.start_daemon()
    until(lambda: not list(registry.iterdir()))


def test_mistakes_are_one_line_and_a_status(tmp_path: Path) -> None:
    require_root()
    (tmp_path / "c.toml").write_text("roto = 1")
    for arguments, status, message in [
        (["--config", tmp_path / "c.toml"], 1, "unknown key 'roto'"),
        (["--config", tmp_path / "missing"], 1, "no configuration file"),
        (["stoop"], 2, "stoop"),
        (["--nonsense"], 2, "nonsense"),
    ]:
        done = run(*arguments)
        assert done.returncode == status
        lines = done.stderr.strip().splitlines()
        assert len(lines) <= 2 and lines[0].startswith("ipfs-snapshotter: error:") and message in lines[0], done.stderr


def test_without_root_it_says_so(tmp_path: Path) -> None:
    require_root()
    code = "import os; from snapshotter.daemon.process import run_daemon; from snapshotter.daemon.config import Config; os.setuid(65534); run_daemon(Config())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert "needs root" in done.stderr


def test_without_fuse_it_says_so(tmp_path: Path) -> None:
    require_root()
    (tmp_path / "c.toml").write_text(f'root = "{tmp_path}/r"\nsocket = "{tmp_path}/s"\n')
    # A mount namespace in which /dev is empty.
    script = f"mount -t tmpfs none /dev && exec {BIN}/ipfs-snapshotter --config {tmp_path}/c.toml"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert "there is no /dev/fuse" in done.stderr and "hint:" in done.stderr


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    require_fuse()
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", small], check=True)
    try:
        (small / "fill").write_bytes(bytes(8192))
        (tmp_path / "c.toml").write_text(f'root = "{small}/r"\nsocket = "{tmp_path}/s"\n')
        done = run("--config", tmp_path / "c.toml")
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(("ipfs-snapshotter: error:", "hint:")), done.stderr
        run("--config", tmp_path / "c.toml", "stop", "--unmount")
    finally:
        subprocess.run(["umount", "-R", small], check=True)


def test_status_and_config_print_for_scripts_and_people(on_stage: Stage) -> None:
    on_stage.start_daemon()
    assert json.loads(on_stage.daemon("status", "--json").stdout)["containerd_config"].startswith("[proxy_plugins.ipfs]")
    text = on_stage.daemon("status").stdout
    assert "daemon" in text and "data plane" in text
    assert "give_up" in run("config").stdout
    assert "Examples:" in run("--help").stdout
