"""The wrappers of containerd's services, against both versions."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from ipfs_store.errors import BlobMismatch, ImageNotFound
from ipfs_store.oci import Descriptor, Digest
from ipfs_store.oci.media_types import OCI_CONFIG, OCI_LAYER_GZIP
from snapshotter.containerd.connection import Connection, connect, leased, require_snapshotter, server_version
from snapshotter.containerd.content import ContentStore
from snapshotter.containerd.errors import AlreadyExists, ContainerdNotFound, ContainerdUnavailable, SnapshotterMissing
from snapshotter.containerd.ingest import PIECE
from snapshotter.containerd.labels import layer_labels
from snapshotter.containerd.records import Images
from snapshotter.containerd.snapshots import Snapshots, chain_ids
from tests.containerd import PrivateContainerd
from tests.patience import PATIENCE

pytestmark = [pytest.mark.root, pytest.mark.containerd]


def test_the_version_is_that_of_the_daemon(containerd: PrivateContainerd, connection: Connection) -> None:
    assert containerd.version in server_version(connection)


@pytest.mark.parametrize("size", [1, PIECE, 3 * PIECE + 17])
def test_a_blob_comes_back_as_it_was_written(connection: Connection, size: int) -> None:
    data = os.urandom(size)
    digest, store = Digest.of(data), ContentStore(connection)
    with leased(connection) as under_lease:
        writing = ContentStore(under_lease)
        assert not store.has(digest)
        assert writing.put(digest, data, {"containerd.io/gc.root": "now"})
        assert not writing.put(digest, data, {"more": "label"})
        assert store.read(digest, size=size) == data
        assert dict(store.info(digest).labels) == {"containerd.io/gc.root": "now", "more": "label"}


def test_bytes_that_do_not_have_the_digest_are_refused_and_gone(connection: Connection, containerd: PrivateContainerd) -> None:
    digest, store = Digest.of(b"right"), ContentStore(connection)
    for wrong in (b"wrong", b"too long", b"no"):
        with pytest.raises(BlobMismatch, match=str(digest)), store.ingest(digest, 5) as ingest:
            assert ingest is not None
            ingest.write(wrong)
    assert not store.has(digest)
    assert str(digest) not in containerd.ctr("content", "active", namespace=connection.namespace)


def test_an_ingest_that_was_broken_off_starts_again(connection: Connection) -> None:
    data = os.urandom(2 * PIECE)
    digest, store = Digest.of(data), ContentStore(connection)
    # As a killed process leaves it: bytes under the name, nobody who holds it.
    ingest = store._open(digest, len(data), {})
    assert ingest is not None
    ingest.write(b"x" * PIECE)
    ingest.close()
    assert store.put(digest, data)
    assert store.read(digest, size=len(data)) == data


def test_two_writers_of_a_blob_wait_for_each_other(connection: Connection) -> None:
    data = os.urandom(PIECE)
    digest = Digest.of(data)
    waits = threading.Event()
    second = ContentStore(connection, pause=lambda seconds: waits.set())
    outcome: list[bool] = []
    with ContentStore(connection).ingest(digest, len(data)) as ingest:
        assert ingest is not None
        ingest.write(data)
        thread = threading.Thread(target=lambda: outcome.append(second.put(digest, data)))
        thread.start()
        assert waits.wait(PATIENCE)
    thread.join()
    assert outcome == [False]


def test_what_a_lease_held_is_collected_after_an_error(connection: Connection) -> None:
    data = b"soon gone" + os.urandom(8)
    with pytest.raises(ZeroDivisionError), leased(connection) as under_lease:
        ContentStore(under_lease).put(Digest.of(data), data)
        raise ZeroDivisionError
    assert not ContentStore(connection).has(Digest.of(data))


def test_a_blob_that_is_not_there(connection: Connection) -> None:
    with pytest.raises(ContainerdNotFound):
        ContentStore(connection).read(Digest.of(b"nothing"), size=1)


def test_a_name_means_what_was_set_last(connection: Connection) -> None:
    images = Images(connection)
    for data in (b"one", b"two"):
        target = Descriptor(OCI_CONFIG, Digest.of(data), 3)
        images.set("name", target, {data.decode(): "x"})
        assert images.get("name") == target
    images.delete("name")
    with pytest.raises(ImageNotFound, match="'name'"):
        images.get("name")


def test_snapshots_by_way_of_containerd(connection: Connection) -> None:
    snapshots = Snapshots(connection, "native")
    assert snapshots.prepare("active", labels={"containerd.io/gc.root": "now"})
    with pytest.raises(AlreadyExists):
        snapshots.prepare("active")
    snapshots.commit("committed", "active", {"containerd.io/gc.root": "now"})
    assert snapshots.exists("committed")
    assert not snapshots.exists("active")
    # Naming a target that is there is how a lazily mounted layer is answered.
    with pytest.raises(AlreadyExists):
        snapshots.prepare("other", labels={"containerd.io/snapshot.ref": "committed"})
    with pytest.raises(ContainerdNotFound):
        snapshots.prepare("child", "no-such-parent")
    snapshots.remove("committed")


def test_a_snapshotter_has_to_be_registered(connection: Connection) -> None:
    require_snapshotter(connection, "overlayfs")
    require_snapshotter(connection, "absent")  # registered; whether it answers shows when it is used
    with pytest.raises(SnapshotterMissing, match=r"'ipfs'.*overlayfs") as caught:
        require_snapshotter(connection, "ipfs")
    assert 'address="/run/ipfs-snapshotter/ipfs-snapshotter.sock"' in (caught.value.hint or "")


def test_no_containerd(tmp_path: Path) -> None:
    with pytest.raises(ContainerdUnavailable, match="no containerd at"), connect(str(tmp_path / "none")):
        pass
    dead = tmp_path / "dead"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(dead))
    with pytest.raises(ContainerdUnavailable, match="does not answer"), connect(str(dead)):
        pass


def test_no_permission(containerd: PrivateContainerd) -> None:
    containerd.root.chmod(0o755)
    answer, asking = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgid(65534)
        os.setuid(65534)
        try:
            with connect(str(containerd.address)):
                os.write(asking, b"connected")
        except ContainerdUnavailable as error:
            os.write(asking, f"{error.message} ({error.hint})".encode())
        os._exit(0)
    os.close(asking)
    os.waitpid(child, 0)
    with os.fdopen(answer, "rb") as said:
        assert b"no permission" in (text := said.read())
    assert b"root" in text


def test_chain_ids_are_those_of_the_specification() -> None:
    one, two = Digest.of(b"1"), Digest.of(b"2")
    assert list(chain_ids([one, two])) == [one, Digest.of(f"{one} {two}".encode())]


def test_labels_stay_below_the_limit_of_containerd() -> None:
    layers = [Descriptor(OCI_LAYER_GZIP, Digest.of(bytes([number])), 1, (f"ipfs://cid{number}",)) for number in range(120)]
    labels = layer_labels("name", layers[0], layers, 0, layers[0].digest)
    assert all(len(key) + len(value) <= 4096 for key, value in labels.items())
    assert labels["containerd.io/snapshot/remote/urls"] == "ipfs://cid0"
    assert len(labels["containerd.io/snapshot/remote/stargz.layers"].split(",")) > 50
    assert all(key.startswith(("containerd.io/snapshot/", "containerd.io/snapshot.ref")) for key in labels)
