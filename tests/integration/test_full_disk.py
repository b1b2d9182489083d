"""A disk that is full: one clear line, or reads that go on without it; never half an image."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containerd import VERSIONS, PrivateContainerd
from tests.integration.stage import Stage, docker_archive, stage, vector_layers
from tests.requirements import require_fuse

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.containerd]
NOISE = os.urandom(24 << 20)


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture(scope="module")
def on_stage() -> Iterator[Stage]:
    require_fuse()
    root = Path(tempfile.mkdtemp(prefix="full-", dir="/var/tmp"))
    try:
        with stage(root) as made:
            yield made
    finally:
        shutil.rmtree(root)


@pytest.fixture(scope="module")
def cid(on_stage: Stage) -> str:
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        info = tarfile.TarInfo("noise")
        info.size = len(NOISE)
        tar.addfile(info, io.BytesIO(NOISE))
    archive = docker_archive(on_stage.root / "image.tar", [*vector_layers(on_stage.root), layer.getvalue()])
    pushed = str(on_stage.push(archive)["cid"])
    on_stage.serve()
    return pushed


def nothing_in(containerd: PrivateContainerd) -> bool:
    commands = (("images", "ls", "-q"), ("content", "ls", "-q"), ("leases", "ls", "-q"))
    return not any(containerd.ctr(*command).split() for command in commands)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_pull_that_containerd_has_no_room_for_is_one_line_and_leaves_nothing(version: str, on_stage: Stage, cid: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ctrd-", dir="/tmp"))
    try:
        with small_disk(folder, "12m"), PrivateContainerd(folder, version) as containerd:
            done = on_stage.cli(
                *on_stage.pulling, "--peer", on_stage.peer, "rpull", "--address", containerd.address, "--snapshotter", "overlayfs", cid
            )
            assert done.returncode == 1
            assert "no space left on device" in done.stderr.lower()
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            assert len(errors) == 1 and "Traceback" not in done.stderr
            assert nothing_in(containerd)
    finally:
        shutil.rmtree(folder)


def test_files_of_a_lazy_image_are_read_although_nothing_can_be_kept(on_stage: Stage, cid: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ctrd-", dir="/tmp"))
    with small_disk(on_stage.root / "pulling", "4m"), small_disk(on_stage.root / "snapshotter", "4m"):
        try:
            on_stage.start_daemon()
            with PrivateContainerd(folder, VERSIONS[-1], {"ipfs": on_stage.socket}) as containerd:
                containerd.wait_for_snapshotter("ipfs")
                pulled = on_stage.rpull(containerd, cid, "--name", "lazy")
                assert [layer["how"] for layer in pulled["layers"]] == ["lazy"] * 3
                out = containerd.ctr("run", "--rm", "--snapshotter", "ipfs", "lazy", "c", "md5sum", "/noise")
                assert out.split()[0] == hashlib.md5(NOISE).hexdigest()
                assert "is not kept" in on_stage.log() or "takes nothing more" in on_stage.log()
                containerd.ctr("image", "rm", "--sync", "lazy")
        finally:
            on_stage.end_daemon()
            assert on_stage.daemon("stop", "--unmount").returncode == 0
            shutil.rmtree(folder)


def test_what_is_pinned_is_there_or_the_pin_fails(on_stage: Stage, cid: str) -> None:
    with small_disk(on_stage.root / "pinning", "4m") as small:
        node = ["--node", "embedded", "--node-path", str(small), "--peer", on_stage.peer]
        root = next(line for line in on_stage.must(*on_stage.pushing, "pin", "ls").split() if line.startswith("bafyrei"))
        done = on_stage.cli(*node, "pin", "add", root)
        assert done.returncode == 1
        assert "No space left on device" in done.stderr or "could not be kept" in done.stderr
        assert root not in on_stage.must("--node", "embedded", "--node-path", str(small), "pin", "ls")
