"""rpull with a snapshotter that mounts layers by the labels it is given: what it is told, what is not fetched, what falls back."""

from __future__ import annotations

import io
import itertools
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipfs_store.cids import format_cid
from ipfs_store.images.push import PushOptions, PushResult, push_image
from ipfs_store.nodes.embedded import EmbeddedNode
from snapshotter.containerd.connection import Connection
from snapshotter.containerd.content import ContentStore
from snapshotter.containerd.rpull import rpull
from tests.containerd import PrivateContainerd
from tests.containerd_client.images import BusyboxImage
from tests.containerd_client.lazy import LazySnapshotter

pytestmark = [pytest.mark.root, pytest.mark.containerd]
_numbers = itertools.count(1)


@pytest.fixture
def lazy(containerd: PrivateContainerd) -> Iterator[LazySnapshotter]:
    # Outside of the test's folder, which is cleared: containerd may still ask to remove snapshots.
    folder = containerd.root / f"lazy{next(_numbers)}"
    folder.mkdir()
    snapshotter = LazySnapshotter(folder, containerd.root / "lazy.sock")
    containerd.wait_for_snapshotter("lazy")
    yield snapshotter
    snapshotter.stop()


async def pushed(folder: Path) -> tuple[EmbeddedNode, PushResult, BusyboxImage]:
    node = EmbeddedNode(folder / "node", peers=[], timeout=2)
    image = BusyboxImage(folder, index=True)
    return node, await push_image(node, image, PushOptions(platforms=None)), image


def serve(lazy: LazySnapshotter, result: PushResult, image: BusyboxImage, number: int, folder: Path) -> None:
    """Let the snapshotter have a layer of the image."""
    with tarfile.open(fileobj=io.BytesIO(image.tars[number])) as archive:
        members = [member for member in archive if ".wh." not in member.name]
        archive.extractall(folder, members, filter="fully_trusted")
    if number == 1:
        (folder / "etc").mkdir()
        os.mknod(folder / "etc" / "gone", stat.S_IFCHR)  # how overlayfs writes a whiteout
    lazy.layers[f"ipfs://{format_cid(result.layers[number].cid)}"] = folder


async def test_layers_that_can_be_mounted_are_not_fetched(
    containerd: PrivateContainerd, connection: Connection, lazy: LazySnapshotter, tmp_path: Path
) -> None:
    node, result, image = await pushed(tmp_path)
    for number, layer in enumerate(result.layers):
        serve(lazy, result, image, number, tmp_path / f"layer{number}")
        await node.delete(layer.cid)  # whoever asks for the blob finds out
    done = await rpull(node, connection, result.cid, snapshotter="lazy", timeout=0.2)
    assert [layer.how for layer in done.layers] == ["lazy", "lazy"]
    assert not any(ContentStore(connection).has(layer.digest) for layer in image.layers)
    run = ("run", "--rm", "--snapshotter", "lazy", done.name)
    assert containerd.ctr(*run, "lazily", "cat", "/hello", namespace=connection.namespace) == "hello from the image\n"
    assert done.name in containerd.ctr("image", "ls", namespace=connection.namespace)
    again = await rpull(node, connection, result.cid, snapshotter="lazy", timeout=0.2)
    assert [layer.how for layer in again.layers] == ["present", "present"]


async def test_what_a_snapshotter_is_told(connection: Connection, lazy: LazySnapshotter, tmp_path: Path) -> None:
    node, result, _ = await pushed(tmp_path)
    done = await rpull(node, connection, result.cid, snapshotter="lazy", name="mine")
    first, second = (layer.descriptor for layer in result.layers)
    told = lazy.asked[0]
    assert told["containerd.io/snapshot.ref"] == str(done.layers[0].chain_id)
    assert told["containerd.io/snapshot/remote/urls"] == f"ipfs://{format_cid(result.layers[0].cid)}"
    assert told["containerd.io/snapshot/cri.image-ref"] == told["containerd.io/snapshot/remote/stargz.reference"] == "mine"
    assert told["containerd.io/snapshot/cri.layer-digest"] == told["containerd.io/snapshot/remote/stargz.digest"] == str(first.digest)
    assert told["containerd.io/snapshot/cri.image-layers"] == f"{first.digest},{second.digest}"
    assert lazy.asked[1]["containerd.io/snapshot/remote/stargz.layers"] == str(second.digest)


@pytest.mark.parametrize("mountable", [0, 1])
async def test_a_layer_that_cannot_be_mounted_is_pulled(
    containerd: PrivateContainerd, connection: Connection, lazy: LazySnapshotter, tmp_path: Path, mountable: int
) -> None:
    node, result, image = await pushed(tmp_path)
    serve(lazy, result, image, mountable, tmp_path / "layer")
    await node.delete(result.layers[mountable].cid)
    done = await rpull(node, connection, result.cid, snapshotter="lazy", timeout=0.2)
    assert [layer.how for layer in done.layers] == ["lazy" if number == mountable else "pulled" for number in (0, 1)]
    assert "its log says why" in done.layers[1 - mountable].why
    listed = containerd.ctr("run", "--rm", "--snapshotter", "lazy", done.name, "mixed", "ls", "/etc", namespace=connection.namespace)
    assert listed.split() == ["group", "passwd"]
