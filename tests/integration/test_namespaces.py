"""Two namespaces of one containerd with the same image: who shares, and that collecting one's garbage harms nobody."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.daemon.status import Row, snapshots
from tests.containerd import VERSIONS, PrivateContainerd
from tests.integration.stage import MODES, Stage, docker_archive, stage, vector_layers
from tests.requirements import require_fuse

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.containerd]


@pytest.fixture
def root() -> Iterator[Path]:
    require_fuse()
    made = Path(tempfile.mkdtemp(prefix="names-", dir="/var/tmp"))
    yield made
    shutil.rmtree(made)


def owner(row: Row) -> str:
    return row.name.partition("/")[0]


def layers(on_stage: Stage) -> int:
    return len(on_stage.status()["layers"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", MODES)
def test_with_a_cache_for_each_namespace_each_has_layers_of_its_own(root: Path, mode: str, version: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ctrd-", dir="/tmp"))
    try:
        with stage(root / mode, mode) as on_stage:
            pushed = on_stage.push(docker_archive(root / "image.tar", vector_layers(root), Cmd=["cat", "/etc/hostname"]))
            on_stage.serve()
            on_stage.scope = "namespace"
            on_stage.start_daemon()
            with PrivateContainerd(folder, version, {"ipfs": on_stage.socket}) as containerd:
                containerd.wait_for_snapshotter("ipfs")
                for count, namespace in enumerate(("one", "two"), start=1):
                    on_stage.rpull(containerd, pushed["cid"], "--name", "lazy", "--namespace", namespace)
                    # Before 2.0 containerd does not say for which namespace it looks: the second pulls the ordinary way.
                    assert layers(on_stage) == (2 if version == "1.6" else 2 * count)
                rows = snapshots(root / mode / "snapshotter")
                assert sorted(owner(row) for row in rows.values()) == ["one", "one", "two", "two"]
                for row in rows.values():
                    assert row.parent is None or owner(rows[row.parent]) == owner(row)
                run = ("run", "--rm", "--snapshotter", "ipfs", "lazy")
                for namespace in ("one", "two"):
                    assert containerd.ctr("--namespace", namespace, *run, f"c{os.getpid()}") == "vector\n"
                containerd.ctr("--namespace", "one", "image", "rm", "--sync", "lazy")
                assert layers(on_stage) == (0 if version == "1.6" else 2)
                assert containerd.ctr("--namespace", "two", *run, "again") == "vector\n"
                containerd.ctr("--namespace", "two", "image", "rm", "--sync", "lazy")
                assert layers(on_stage) == 0
    finally:
        shutil.rmtree(folder)
