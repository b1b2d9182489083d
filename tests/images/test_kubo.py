"""A pushed image as Kubo alone sees it: paths, pins, collection, export, a fetch by another node."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_trio
import zstandard

from ipfs_store.cids import format_cid
from ipfs_store.images.conversion import lazy_form
from ipfs_store.images.pull import copy_blob, resolve
from ipfs_store.images.push import PushOptions, PushResult, push_image
from ipfs_store.nodes.kubo import KuboNode
from tests.images.test_push_pull import VectorImage
from tests.kubo import KuboDaemon, new_swarm_key

pytestmark = pytest.mark.kubo


@pytest.fixture(scope="module")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KuboDaemon, KuboDaemon]]:
    """Two daemons of a private swarm that know each other."""
    key, folder = new_swarm_key(), tmp_path_factory.mktemp("swarm")
    with KuboDaemon(folder / "one", swarm_key=key) as one, KuboDaemon(folder / "other", swarm_key=key) as other:
        other.connect(one)
        yield one, other


@pytest_trio.trio_fixture
async def pushed(daemons: tuple[KuboDaemon, KuboDaemon]) -> AsyncIterator[PushResult]:
    """The image in the first daemon; the other one empty."""
    node = KuboNode(daemons[0].api)
    result = await push_image(node, VectorImage(), PushOptions(inspect=lazy_form))
    yield result
    await node.aclose()
    for daemon in daemons:
        for line in daemon.run("pin", "ls", "--type=recursive", "--quiet").decode().split():
            daemon.run("pin", "rm", line)
        daemon.run("repo", "gc")


def get(daemon: KuboDaemon, path: str) -> object:
    return json.loads(daemon.run("dag", "get", path))


def cat(daemon: KuboDaemon, path: str) -> bytes:
    return daemon.run("cat", daemon.run("dag", "resolve", path).decode().strip())


async def test_paths_of_the_root_lead_to_every_part(daemons: tuple[KuboDaemon, KuboDaemon], pushed: PushResult) -> None:
    daemon, root = daemons[0], format_cid(pushed.root)
    image = VectorImage()
    blob = image.layer.read_bytes()
    assert get(daemon, f"{root}/name") == image.name
    assert get(daemon, f"{root}/manifests/0/platform") == {"architecture": "amd64", "os": "linux"}
    assert get(daemon, f"{root}/layers/0/size") == len(blob)
    assert get(daemon, f"{root}/layers/0/digest") == "sha256:" + hashlib.sha256(blob).hexdigest()
    assert cat(daemon, f"{root}/layers/0/blob") == blob
    toc = zstandard.ZstdDecompressor().stream_reader(cat(daemon, f"{root}/layers/0/toc/blob"), read_across_frames=True).read()
    assert get(daemon, f"{root}/layers/0/toc/digest") == "sha256:" + hashlib.sha256(toc).hexdigest()
    assert get(daemon, f"{root}/layers/0/toc/rawSize") == len(toc)
    for path in ("image", "manifests/0", "manifests/0/config", "layers/0"):
        digest = get(daemon, f"{root}/{path}/digest")
        assert isinstance(digest, str)
        assert digest == "sha256:" + hashlib.sha256(cat(daemon, f"{root}/{path}/blob")).hexdigest()
        assert get(daemon, f"{root}/digests/{digest}") is not None


async def test_a_pinned_root_keeps_the_image_through_a_collection(daemons: tuple[KuboDaemon, KuboDaemon], pushed: PushResult) -> None:
    daemon, root = daemons[0], format_cid(pushed.root)
    for line in daemon.run("pin", "ls", "--type=recursive", "--quiet").decode().split():
        daemon.run("pin", "rm", line)
    daemon.run("pin", "add", root)
    before = set(daemon.run("refs", "-r", "-u", root).split())
    daemon.run("repo", "gc")
    daemon.run("dag", "stat", "--offline", root)
    assert set(daemon.run("refs", "-r", "-u", "--offline", root).split()) == before
    node = KuboNode(daemon.api)
    (manifest,) = (await resolve(node, pushed.root)).manifests
    parts: list[bytes] = []

    async def write(piece: bytes) -> None:
        parts.append(piece)

    await copy_blob(node, manifest.layers[0], write)
    await node.aclose()
    assert b"".join(parts) == VectorImage().layer.read_bytes()


async def test_what_is_exported_is_a_whole_image_elsewhere(
    daemons: tuple[KuboDaemon, KuboDaemon], pushed: PushResult, tmp_path: Path
) -> None:
    one, other = daemons
    car = tmp_path / "image.car"
    car.write_bytes(one.run("dag", "export", format_cid(pushed.root)))
    other.run("dag", "import", "--pin-roots=true", str(car))
    other.run("repo", "gc")
    other.run("dag", "stat", "--offline", format_cid(pushed.root))
    node = KuboNode(other.api)
    assert (await resolve(node, pushed.root)).name == VectorImage.name
    await node.aclose()


async def test_another_node_fetches_all_of_it_by_its_root(daemons: tuple[KuboDaemon, KuboDaemon], pushed: PushResult) -> None:
    one, other = daemons
    other.run("pin", "add", format_cid(pushed.root))
    stat = [
        json.loads(daemon.run("dag", "stat", "--offline", "--enc=json", "--progress=false", format_cid(pushed.root)))
        for daemon in (one, other)
    ]
    assert stat[0] == stat[1]
    assert stat[0]["TotalSize"] >= VectorImage().layer.stat().st_size
