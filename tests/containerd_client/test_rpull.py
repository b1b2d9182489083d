"""An eager rpull: what containerd has afterwards, what a second one does, what is left after an error."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import trio

from ipfs_store.cids import Cid, format_cid
from ipfs_store.errors import BlobMismatch, BlockNotFound, ImageNotFound, InvalidDescriptor
from ipfs_store.images.push import PushOptions, PushResult, push_image
from ipfs_store.nodes.embedded import EmbeddedNode
from ipfs_store.oci import Digest
from snapshotter.containerd.connection import Connection
from snapshotter.containerd.content import ContentStore
from snapshotter.containerd.errors import SnapshotterMissing, SnapshotterUnavailable
from snapshotter.containerd.records import Images
from snapshotter.containerd.rpull import rpull
from tests.containerd import PrivateContainerd
from tests.containerd_client.images import BusyboxImage

pytestmark = [pytest.mark.root, pytest.mark.containerd]


async def pushed(folder: Path, *, index: bool = False) -> tuple[EmbeddedNode, PushResult, BusyboxImage]:
    node = EmbeddedNode(folder / "node", peers=[], timeout=2)
    image = BusyboxImage(folder, index=index)
    return node, await push_image(node, image, PushOptions(platforms=None)), image


def left(containerd: PrivateContainerd, namespace: str) -> list[str]:
    """Everything that a namespace has."""
    commands = (("images", "ls", "-q"), ("content", "ls", "-q"), ("content", "active"), ("leases", "ls", "-q"), ("snapshots", "ls"))
    return [
        line
        for command in commands
        for line in containerd.ctr(*command, namespace=namespace).splitlines()
        if not line.startswith(("KEY", "REF"))
    ]


@pytest.mark.parametrize("index", [False, True])
async def test_an_image_pulled_eagerly_runs_under_ctr(
    containerd: PrivateContainerd, connection: Connection, tmp_path: Path, index: bool
) -> None:
    node, result, _ = await pushed(tmp_path, index=index)
    done = await rpull(node, connection, result.cid, snapshotter="overlayfs")
    assert done.name == "docker.io/test/busybox:1"
    assert [layer.how for layer in done.layers] == ["pulled", "pulled"]
    output = containerd.ctr("run", "--rm", done.name, f"eager{index}", "cat", "/hello", namespace=connection.namespace)
    assert output == "hello from the image\n"
    listed = containerd.ctr("run", "--rm", done.name, f"listed{index}", "ls", "/etc", namespace=connection.namespace)
    assert listed.split() == ["group", "passwd"]
    assert done.name in containerd.ctr("image", "ls", namespace=connection.namespace)


async def test_what_was_pulled_is_complete_enough_to_export(containerd: PrivateContainerd, connection: Connection, tmp_path: Path) -> None:
    node, result, _ = await pushed(tmp_path)
    await rpull(node, connection, result.cid, name="mine", snapshotter="overlayfs")
    containerd.ctr("image", "export", tmp_path / "exported.tar", "mine", namespace=connection.namespace)
    assert (tmp_path / "exported.tar").stat().st_size > 500_000


async def test_a_second_pull_fetches_no_layer(connection: Connection, containerd: PrivateContainerd, tmp_path: Path) -> None:
    node, result, _ = await pushed(tmp_path)
    await rpull(node, connection, result.cid, snapshotter="overlayfs")
    before = left(containerd, connection.namespace)
    again = await rpull(node, connection, result.root, snapshotter="overlayfs", name="docker.io/test/busybox:1")
    assert [layer.how for layer in again.layers] == ["present", "present"]
    assert left(containerd, connection.namespace) == before


async def test_a_removed_image_leaves_nothing(connection: Connection, containerd: PrivateContainerd, tmp_path: Path) -> None:
    node, result, _ = await pushed(tmp_path)
    await rpull(node, connection, result.cid, name="soon-gone", snapshotter="overlayfs")
    containerd.ctr("image", "rm", "--sync", "soon-gone", namespace=connection.namespace)
    assert left(containerd, connection.namespace) == []


async def test_garbage_collection_leaves_an_image_whole(connection: Connection, containerd: PrivateContainerd, tmp_path: Path) -> None:
    node, result, image = await pushed(tmp_path)
    await rpull(node, connection, result.cid, name="kept", snapshotter="overlayfs")
    before = left(containerd, connection.namespace)
    Images(connection).set("other", Images(connection).get("kept"), {})
    Images(connection).delete("other")  # a collection, and its end
    assert left(containerd, connection.namespace) == before
    assert ContentStore(connection).has(image.layers[0].digest)


async def test_an_image_without_a_name_is_called_by_its_cid(connection: Connection, tmp_path: Path) -> None:
    node = EmbeddedNode(tmp_path / "node", peers=[], timeout=2)
    result = await push_image(node, BusyboxImage(tmp_path, name=""))
    done = await rpull(node, connection, result.cid, snapshotter="overlayfs")
    assert done.name == format_cid(result.cid)
    assert Images(connection).named_by(done.name) == [done.name]


async def test_a_layer_that_nobody_has_leaves_nothing(connection: Connection, containerd: PrivateContainerd, tmp_path: Path) -> None:
    node, result, _ = await pushed(tmp_path)
    await node.delete(result.layers[1].cid)
    with pytest.RaisesGroup(BlockNotFound, flatten_subgroups=True, allow_unwrapped=True):
        await rpull(node, connection, result.cid, snapshotter="overlayfs", timeout=0.2)
    assert left(containerd, connection.namespace) == []


async def test_an_unknown_snapshotter_is_answered_with_the_configuration_to_add(
    connection: Connection, containerd: PrivateContainerd, tmp_path: Path
) -> None:
    node, result, _ = await pushed(tmp_path)
    with pytest.raises(SnapshotterMissing, match="no snapshotter 'ipfs'") as caught:
        await rpull(node, connection, result.cid)
    assert caught.value.hint is not None
    assert "[proxy_plugins.ipfs]" in caught.value.hint
    assert left(containerd, connection.namespace) == []


async def test_a_snapshotter_that_is_not_there_is_named(connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snapshotter.containerd.snapshots._PATIENCE", 0.5)
    node, result, _ = await pushed(tmp_path)
    with pytest.raises(SnapshotterUnavailable, match="'absent' does not answer"):
        await rpull(node, connection, result.cid, snapshotter="absent")
    assert ContentStore(connection).has(result.descriptor.digest) is False
    with pytest.raises(ImageNotFound):
        Images(connection).get("docker.io/test/busybox:1")


async def test_what_is_no_image_is_refused(connection: Connection, tmp_path: Path) -> None:
    node, result, _ = await pushed(tmp_path)
    with pytest.raises(InvalidDescriptor, match="not an image"):
        await rpull(node, connection, result.layers[0].cid, snapshotter="overlayfs")


class StoppingNode(EmbeddedNode):
    """Comes to a halt when the last layer is asked for, and says so."""

    def halt_at(self, cid: Cid) -> None:
        self.cid, self.halted = cid, trio.Event()

    async def get(self, cid: Cid, *, timeout: float | None = None) -> bytes:
        if cid == self.cid:
            self.halted.set()
            await trio.sleep_forever()
        return await super().get(cid, timeout=timeout)


async def test_a_pull_that_is_broken_off_leaves_nothing(connection: Connection, containerd: PrivateContainerd, tmp_path: Path) -> None:
    _, result, _ = await pushed(tmp_path)
    node = StoppingNode(tmp_path / "node", peers=[], timeout=2)
    node.halt_at(result.layers[1].cid)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: rpull(node, connection, result.cid, snapshotter="overlayfs"))
        await node.halted.wait()
        nursery.cancel_scope.cancel()
    assert left(containerd, connection.namespace) == []


KILLED = """
import os, sys, trio
from pathlib import Path
from ipfs_store.cids import parse_cid
from ipfs_store.nodes.embedded import EmbeddedNode
from snapshotter.containerd import rpull as module
from snapshotter.containerd.connection import connect

folder, address, namespace, cid, moment = sys.argv[1:]
def die(*_): os._exit(9)
async def die_in_the_middle(node, descriptor, cid, write, **_):
    await write(bytes(100))
    die()
if moment == "unpack":
    module.apply = die
elif moment == "record":
    module.Images.set = die
else:
    module.copy_file = die_in_the_middle
with connect(address, namespace) as connection:
    node = EmbeddedNode(Path(folder), peers=[], timeout=2)
    trio.run(lambda: module.rpull(node, connection, parse_cid(cid), snapshotter="overlayfs"))
"""


@pytest.mark.parametrize("moment", ["fetch", "unpack", "record"])
async def test_after_a_kill_the_next_pull_succeeds(
    connection: Connection, containerd: PrivateContainerd, tmp_path: Path, moment: str
) -> None:
    node, result, _ = await pushed(tmp_path)
    arguments = [tmp_path / "node", containerd.address, connection.namespace, format_cid(result.cid), moment]
    killed = await trio.run_process([sys.executable, "-c", KILLED, *map(str, arguments)], check=False, capture_stderr=True)
    assert killed.returncode == 9, killed.stderr
    done = await rpull(node, connection, result.cid, snapshotter="overlayfs")
    output = containerd.ctr("run", "--rm", done.name, f"after-{moment}", "cat", "/hello", namespace=connection.namespace)
    assert output == "hello from the image\n"


async def test_pulls_of_one_image_at_once(connection: Connection, containerd: PrivateContainerd, tmp_path: Path) -> None:
    node, result, _ = await pushed(tmp_path)
    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(lambda name: rpull(node, connection, result.cid, snapshotter="overlayfs", name=name), f"name{number}")
    listing = containerd.ctr("snapshots", "ls", namespace=connection.namespace)
    assert (listing.count("Committed"), listing.count("Active")) == (2, 0)
    containerd.ctr("run", "--rm", "name3", "at-once", "true", namespace=connection.namespace)


async def test_a_layer_that_is_not_what_the_config_says_is_refused(
    connection: Connection, containerd: PrivateContainerd, tmp_path: Path
) -> None:
    node = EmbeddedNode(tmp_path / "node", peers=[], timeout=2)
    image = BusyboxImage(tmp_path)
    document = json.loads(image.config)
    document["rootfs"]["diff_ids"][1] = str(Digest.of(b"something else"))
    image.reconfigure(document)
    result = await push_image(node, image)
    with pytest.RaisesGroup(pytest.RaisesExc(BlobMismatch, match="unpacks to")):
        await rpull(node, connection, result.cid, snapshotter="overlayfs")
    assert left(containerd, connection.namespace) == []
