"""Containers on native mounts: read-only, nested, in user namespaces; what they wrote as a layer."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.containerd import VERSIONS, PrivateContainerd
from tests.integration.stage import Stage, docker_archive, stage, started, vector_layers
from tests.requirements import require_fuse

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.containerd]
NAMESPACE = (("containerd-namespace", "default"),)
RUN = ("run", "--rm", "--snapshotter", "ipfs")


@pytest.fixture(scope="module")
def on_stage() -> Iterator[Stage]:
    require_fuse()
    root = Path(tempfile.mkdtemp(prefix="native-", dir="/var/tmp"))
    try:
        with stage(root / "stage", "native") as made:
            yield made
    finally:
        shutil.rmtree(root)


@pytest.fixture(scope="module")
def pushed(on_stage: Stage) -> dict[str, Any]:
    result = on_stage.push(docker_archive(on_stage.root / "image.tar", vector_layers(on_stage.root), Cmd=["cat", "/etc/hostname"]))
    on_stage.serve()
    return result


@pytest.fixture(scope="module", params=VERSIONS)
def containerd(request: pytest.FixtureRequest, on_stage: Stage, pushed: dict[str, Any]) -> Iterator[PrivateContainerd]:
    with started(on_stage, request.param) as made:
        on_stage.rpull(made, pushed["cid"], "--name", "lazy")
        yield made


def fetched(on_stage: Stage) -> int:
    return sum(int(layer["bytes_fetched"]) for layer in on_stage.status()["layers"])


def test_a_read_only_container_runs(containerd: PrivateContainerd) -> None:
    out = containerd.ctr(*RUN, "--read-only", "lazy", "ro", "sh", "-c", "cat /etc/hostname; echo x > /new || echo refused")
    assert out == "vector\nrefused\n"


def test_an_overlay_can_be_mounted_inside_a_container(containerd: PrivateContainerd) -> None:
    script = (
        "mount -t tmpfs t /var && mkdir /var/u /var/w /var/m && mount -t overlay -o lowerdir=/,upperdir=/var/u,workdir=/var/w o /var/m"
        " && echo changed > /var/m/etc/hostname && cat /etc/hostname /var/m/etc/hostname"
    )
    assert containerd.ctr(*RUN, "--privileged", "lazy", "nested", "sh", "-c", script) == "vector\nchanged\n"


@pytest.mark.parametrize("remapped", [True, False])
def test_a_user_namespace_sees_its_own_owners_and_no_data_is_fetched_or_copied(
    containerd: PrivateContainerd, on_stage: Stage, pushed: dict[str, Any], remapped: bool
) -> None:
    size = 1_000_003  # of /usr/lib/big, which nobody reads
    before = fetched(on_stage)
    script = "id -u; stat -c %u /etc/hostname /bin/sh /usr/lib/big; echo x > /etc/new && stat -c %u /etc/new; cat /proc/self/uid_map"
    options = ["--uidmap", "0:100000:5000000", "--gidmap", "0:100000:5000000", *(["--remap-labels"] if remapped else [])]
    out = containerd.ctr(*RUN, *options, "lazy", f"user-{remapped}", "sh", "-c", script).split()
    assert out[:5] == ["0", "0", "0", "0", "0"]
    assert out[5:] == ["0", "100000", "5000000"]
    assert fetched(on_stage) - before < size, "nothing but what was executed"
