"""First light: pushed once, pulled lazily by another machine's containerd, every file as it was."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.containerd import VERSIONS, PrivateContainerd
from tests.integration.stage import MODES, Stage, docker_archive, stage, vector_layers, view
from tests.patience import PATIENCE
from tests.requirements import require_fuse, require_tool
from tests.trees import differences, look

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.containerd]


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    require_fuse()
    made = Path(tempfile.mkdtemp(prefix="lazy-", dir="/var/tmp"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def archive(root: Path) -> Path:
    return docker_archive(root / "image.tar", vector_layers(root), Cmd=["cat", "/etc/hostname"])


@pytest.fixture(scope="module", params=MODES)
def on_stage(request: pytest.FixtureRequest, root: Path) -> Iterator[Stage]:
    with stage(root / request.param, request.param) as made:
        yield made


@pytest.fixture(scope="module")
def pushed(on_stage: Stage, archive: Path) -> dict[str, Any]:
    result = on_stage.push(archive)
    on_stage.serve()
    on_stage.start_daemon()
    return result


@pytest.fixture(scope="module", params=VERSIONS)
def containerd(request: pytest.FixtureRequest, on_stage: Stage, pushed: dict[str, Any]) -> Iterator[PrivateContainerd]:
    folder = Path(tempfile.mkdtemp(prefix="ctrd-", dir="/tmp"))
    try:
        with PrivateContainerd(folder, request.param, {"ipfs": on_stage.socket}) as started:
            started.wait_for_snapshotter("ipfs")
            yield started
            started.run("image", "rm", "--sync", "lazy", "eager", "docker.io/test/vector:1")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def pulled(on_stage: Stage, containerd: PrivateContainerd, pushed: dict[str, Any]) -> dict[str, Any]:
    return on_stage.rpull(containerd, pushed["cid"], "--name", "lazy")


def chain(pulled: dict[str, Any]) -> str:
    return str(pulled["layers"][-1]["chain_id"])


def test_layers_are_mounted_not_pulled(pulled: dict[str, Any], containerd: PrivateContainerd) -> None:
    assert [layer["how"] for layer in pulled["layers"]] == ["lazy", "lazy"]
    blobs = containerd.ctr("content", "ls", "-q").split()
    assert not any(layer["digest"] in blobs for layer in pulled["layers"])


def test_every_file_is_as_an_ordinary_pull_makes_it(
    pulled: dict[str, Any], on_stage: Stage, containerd: PrivateContainerd, pushed: dict[str, Any], tmp_path: Path
) -> None:
    eager = on_stage.rpull(containerd, pushed["cid"], "--name", "eager", "--snapshotter", "overlayfs")
    with (
        view(containerd, "ipfs", chain(pulled), tmp_path / "lazy") as lazy,
        view(containerd, "overlayfs", chain(eager), tmp_path / "eager") as plain,
    ):
        left = look(lazy)
        # An ordinary unpacking leaves the format's own files in the root; a lazy mount does not show them.
        right = look(plain, skip=frozenset({"stargz.index.json", ".no.prefetch.landmark"}))
        found = differences(left, right)
        # The root and usr/share are in no tar of this image: their time is when they were made, or none. And this tar says another mode at the second name of a
        # file than at the first: unpacking takes the last it meets, the format the first.
        odd = (".: mtime_ns", "usr/share: mtime_ns", "usr/bin/tool: mode", "usr/bin/twin: mode")
        assert [line for line in found if not line.startswith(odd)] == []
        assert len(left) > 80
        assert "var/gone" not in left and "var/opaque/old" not in left and "var/opaque/kept" in left


def test_a_container_runs_and_writes(pulled: dict[str, Any], containerd: PrivateContainerd) -> None:
    run = ["run", "--rm", "--snapshotter", "ipfs", "lazy"]
    assert containerd.ctr(*run, "c1") == "vector\n"
    script = "echo changed > /etc/hostname && rm /usr/bin/tool && cat /etc/hostname /usr/share/*/n* && ls /usr/bin"
    assert containerd.ctr(*run, "c2", "sh", "-c", script) == "changed\nlong\nalias\nsuid\ntwin\n"
    assert containerd.ctr(*run, "c3") == "vector\n"


def test_tools_that_stay_on_one_file_system_see_every_file(pulled: dict[str, Any], containerd: PrivateContainerd) -> None:
    count = "busybox du -a $0 /etc /bin /usr /var | wc -l"
    out = containerd.ctr(
        "run", "--rm", "--snapshotter", "ipfs", "lazy", "du", "sh", "-c", f"{count.replace('$0', '')}; {count.replace('$0', '-x')}"
    )
    everything, limited = map(int, out.split())
    assert limited == everything > 20


def test_ipfs_store_run_starts_from_the_cid(on_stage: Stage, containerd: PrivateContainerd, pushed: dict[str, Any]) -> None:
    done = on_stage.cli(
        *on_stage.pulling,
        "--peer",
        on_stage.peer,
        "run",
        "--rm",
        "--address",
        containerd.address,
        pushed["cid"],
        "sh",
        "-c",
        "cat /etc/hostname; exit 7",
    )
    assert (done.returncode, done.stdout) == (7, "vector\n"), done.stderr


def test_only_what_is_read_is_fetched(pulled: dict[str, Any], on_stage: Stage) -> None:
    status = on_stage.status()
    assert status["pid"] and status["dataplane"]["pid"]
    by_digest = {layer["digest"]: layer for layer in status["layers"]}
    for layer in pulled["layers"]:
        found = by_digest[layer["digest"]]
        # What another containerd of this machine read before is on the disk still.
        assert found["bytes_read"] > 0 and (found["bytes_fetched"] > 0 or found["bytes_cached"] > 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_running_container_does_not_notice_that_the_daemon_restarts(
    number: signal.Signals, pulled: dict[str, Any], on_stage: Stage, containerd: PrivateContainerd
) -> None:
    containerd.ctr("run", "-d", "--snapshotter", "ipfs", "lazy", "sleeper", "sleep", "1000")
    try:
        on_stage.end_daemon(number)
        assert "1000003" in containerd.ctr("tasks", "exec", "--exec-id", "e1", "sleeper", "sh", "-c", "wc -c < /usr/lib/big")
        on_stage.start_daemon()
        containerd.wait_for_snapshotter("ipfs")
        assert containerd.ctr("tasks", "exec", "--exec-id", "e2", "sleeper", "cat", "/etc/hostname") == "vector\n"
        assert containerd.ctr("run", "--rm", "--snapshotter", "ipfs", "lazy", "after") == "vector\n"
    finally:
        containerd.run("tasks", "rm", "--force", "sleeper")
        containerd.run("containers", "rm", "sleeper")


def test_a_layer_that_is_no_estargz_is_pulled_the_ordinary_way(on_stage: Stage, containerd: PrivateContainerd, archive: Path) -> None:
    plain = on_stage.push(archive, "--estargz=false", "--name", "plain:1")
    result = on_stage.rpull(containerd, plain["cid"], "--name", "plain")
    assert {layer["how"] for layer in result["layers"]} == {"pulled"}
    assert containerd.ctr("run", "--rm", "--snapshotter", "ipfs", "plain", "p") == "vector\n"
    assert "no footer" in on_stage.log()
    containerd.ctr("image", "rm", "--sync", "plain")


def test_an_image_that_is_removed_leaves_no_layer(on_stage: Stage, containerd: PrivateContainerd, pushed: dict[str, Any]) -> None:
    namespace = ["--namespace", "passing"]
    on_stage.rpull(containerd, pushed["cid"], "--name", "passing", *namespace)
    containerd.ctr("image", "rm", "--sync", "passing", namespace="passing")
    names = containerd.ctr("snapshots", "--snapshotter", "ipfs", "ls", namespace="passing").splitlines()[1:]
    assert names == []


def test_other_tools_read_what_is_pushed(on_stage: Stage, pushed: dict[str, Any], containerd: PrivateContainerd) -> None:
    """The TOC digest in the manifest is what ctr-remote finds in the blob."""
    ctr_remote = require_tool("ctr-remote")
    eager = on_stage.rpull(containerd, pushed["cid"], "--name", "eager2", "--snapshotter", "overlayfs")
    manifest = json.loads(containerd.ctr("content", "get", eager["digest"]))
    for layer in manifest["layers"]:
        done = subprocess.run(
            [ctr_remote, "--address", containerd.address, "image", "get-toc-digest", layer["digest"]], capture_output=True, text=True
        )
        assert layer["annotations"]["containerd.io/snapshot/stargz/toc.digest"] in done.stdout, done.stderr
    containerd.ctr("image", "rm", "--sync", "eager2")


def test_reads_wait_for_a_node_that_is_away_and_then_go_on(on_stage: Stage, containerd: PrivateContainerd, archive: Path) -> None:
    with tempfile.TemporaryDirectory(dir=on_stage.root) as work:
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as tar:
            info = tarfile.TarInfo(f"random-{containerd.version}")
            data = os.urandom(3 << 20)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        image = docker_archive(Path(work) / "random.tar", [*vector_layers(Path(work)), layer.getvalue()])
        cid = on_stage.push(image)["cid"]
        result = on_stage.rpull(containerd, cid, "--name", "random")
        assert result["layers"][-1]["how"] == "lazy"
        on_stage.stop_serving()
        reader = subprocess.Popen(
            [containerd.ctr_binary, "--address", containerd.address, "run", "--rm", "--snapshotter", "ipfs", "random", "r", "md5sum", f"/random-{containerd.version}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=containerd.environment,
        )  # fmt: skip
        with pytest.raises(subprocess.TimeoutExpired):
            reader.wait(3)
        on_stage.serve()
        out, err = reader.communicate(timeout=PATIENCE)
        assert reader.returncode == 0, err
        assert hashlib.md5(data).hexdigest().encode() in out
        containerd.ctr("image", "rm", "--sync", "random")
