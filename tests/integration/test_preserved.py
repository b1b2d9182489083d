"""Digests kept from a registry into containerd, layers mounted lazily where they can be."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containerd import VERSIONS, PrivateContainerd
from tests.integration.stage import Stage, docker_archive, stage, vector_layers
from tests.requirements import require_fuse, require_tool
from tests.sources.registries import docker_registry

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.containerd]


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    require_fuse()
    made = Path(tempfile.mkdtemp(prefix="kept-", dir="/var/tmp"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def registry(root: Path) -> Iterator[str]:
    with docker_registry(root / "registry") as host:
        yield host


@pytest.fixture(scope="module")
def on_stage(root: Path) -> Iterator[Stage]:
    with stage(root / "stage", "native") as made:
        made.serve()
        made.start_daemon()
        yield made


@pytest.fixture(scope="module", params=VERSIONS)
def containerd(request: pytest.FixtureRequest, on_stage: Stage) -> Iterator[PrivateContainerd]:
    folder = Path(tempfile.mkdtemp(prefix="ctrd-", dir="/tmp"))
    try:
        with PrivateContainerd(folder, request.param, {"ipfs": on_stage.socket}) as started:
            started.wait_for_snapshotter("ipfs")
            yield started
            started.run("image", "rm", "--sync", "estargz", "plain")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def archive(root: Path) -> Path:
    return docker_archive(root / "image.tar", vector_layers(root), Cmd=["cat", "/etc/hostname"])


@pytest.mark.parametrize(("kind", "how"), [("estargz", "lazy"), ("plain", "pulled")])
def test_the_digest_in_containerd_is_the_registrys(
    kind: str, how: str, archive: Path, registry: str, on_stage: Stage, containerd: PrivateContainerd
) -> None:
    name = f"{registry}/kept/{kind}:1"
    if kind == "estargz":
        on_stage.must("convert", "--estargz", "--oci", f"docker-archive:{archive}", f"docker://{name}")
    else:
        copy = [
            require_tool("skopeo"),
            "copy",
            "-q",
            "--dest-tls-verify=false",
            "--dest-compress",
            f"docker-archive:{archive}",
            f"docker://{name}",
        ]
        subprocess.run(copy, check=True)
    looked = subprocess.run([require_tool("skopeo"), "inspect", "--tls-verify=false", f"docker://{name}"], check=True, capture_output=True)
    digest = json.loads(looked.stdout)["Digest"]
    done = on_stage.cli(*on_stage.pushing, "ipfs-push", "--preserve-digests", "--json", name)
    pushed = json.loads(done.stdout)
    assert ("2 of 2 layers have no table of contents" in done.stderr) == (how == "pulled")
    assert [layer["lazy"] for layer in pushed["layers"]] == [how == "lazy"] * 2
    pulled = on_stage.rpull(containerd, pushed["cid"], "--name", kind)
    assert pulled["digest"] == pushed["descriptor"]["digest"] == digest
    assert [layer["how"] for layer in pulled["layers"]] == [how] * 2
    assert f" {digest} " in containerd.ctr("images", "ls")
    assert containerd.ctr("run", "--rm", "--snapshotter", "ipfs", kind, f"c-{kind}") == "vector\n"
