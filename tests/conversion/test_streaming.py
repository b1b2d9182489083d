"""Conversion out of containerd and into it, layers hashed, fetched and sent while they are converted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipfs_store.errors import BlobMismatch, ImageNotFound, InvalidLayer
from ipfs_store.formats.options import WriteOptions
from ipfs_store.images.conversion import ConvertedImage, ConvertOptions, convert_image, layer_converter
from ipfs_store.images.sources import open_image
from ipfs_store.oci import Digest
from snapshotter.containerd.content import ContentStore
from tests.containerd import PrivateContainerd
from tests.sources.conftest import contents
from tests.sources.made import MadeImage, layout_files, tar, write_folder
from tests.targets.places import Place

pytestmark = [pytest.mark.root, pytest.mark.containerd]
_MIB = 1 << 20


@pytest.fixture(params=["file", "socket"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How layers come out of containerd: by its folder, or by its socket where we cannot see that."""
    if request.param == "socket":
        monkeypatch.setattr(ContentStore, "open_file", lambda self, digest, size: None)
    return str(request.param)


def made(*layers: bytes) -> MadeImage:
    """An image whose layers are neither small nor compressible, and new each time: containerd shares blobs among namespaces."""
    return MadeImage(layers or [tar({"hello": b"hello" * 1000, "noise": os.urandom(3 * _MIB), "small": os.urandom(9)})])


async def brought(image: MadeImage, place: Place, folder: Path) -> str:
    """``image`` as app:1; returns the path of a layout with it."""
    source = f"oci:{write_folder(folder, layout_files([image.descriptor()], image.blobs))}"
    async with open_image(source) as found, place.target("app:1") as target:
        await convert_image(found, target)
    return source


async def convert(place: Place, name: str = "app:2", options: WriteOptions | None = None) -> ConvertedImage:
    async with place.image("app:1") as image, place.target(name) as target:
        layers = layer_converter(options or WriteOptions(), folder=target.folder)
        return await convert_image(image, target, ConvertOptions(convert=layers))


def left(place: Place, containerd: PrivateContainerd) -> str:
    """What is on its way in containerd, or was left there by who broke off."""
    assert place.namespace is not None
    active = containerd.ctr("content", "active", namespace=place.namespace).splitlines()[1:]
    return "\n".join([*active, containerd.ctr("leases", "ls", "-q", namespace=place.namespace)]).strip()


@pytest.fixture
def nothing_left(in_containerd: tuple[Place, PrivateContainerd]) -> Iterator[None]:
    yield
    place, containerd = in_containerd
    assert left(place, containerd) == ""
    assert list(place.scratch.iterdir()) == []


@pytest.mark.usefixtures("nothing_left")
async def test_it_is_the_same_image_as_from_anywhere_else(
    way: str, in_containerd: tuple[Place, PrivateContainerd], everywhere: dict[str, Place], tmp_path: Path
) -> None:
    place, _ = in_containerd
    source = await brought(made(), place, tmp_path / "source")
    converted = await convert(place)
    async with open_image(source) as found, everywhere["oci"].target("same") as target:
        layers = layer_converter(WriteOptions(), folder=target.folder)
        same = await convert_image(found, target, ConvertOptions(convert=layers))
    assert converted.layers == same.layers and all(layer.converted for layer in converted.layers)
    assert converted.root.digest == same.root.digest
    async with place.image("app:2") as image:
        _, _, blobs = await contents(image)
    assert [Digest.of(blob) for blob in blobs] == [layer.descriptor.digest for layer in converted.layers]


@pytest.mark.usefixtures("nothing_left")
async def test_a_second_time_nothing_is_added(way: str, in_containerd: tuple[Place, PrivateContainerd], tmp_path: Path) -> None:
    place, containerd = in_containerd
    assert place.namespace is not None
    await brought(made(), place, tmp_path / "source")
    first = await convert(place)
    before = containerd.ctr("content", "ls", namespace=place.namespace)
    assert await convert(place, "app:3") == ConvertedImage(first.root, (place.full("app:3"),), first.layers)
    containerd.ctr("image", "rm", "--sync", place.full("app:2"), namespace=place.namespace)
    after = containerd.ctr("content", "ls", namespace=place.namespace)
    assert sorted(line.split()[0] for line in after.splitlines()) == sorted(line.split()[0] for line in before.splitlines())


@pytest.mark.usefixtures("nothing_left")
async def test_a_path_that_comes_twice_starts_the_layer_again(
    way: str, in_containerd: tuple[Place, PrivateContainerd], tmp_path: Path
) -> None:
    """By then megabytes were sent, which containerd has to forget."""
    place, _ = in_containerd
    twice = tar({"noise": os.urandom(5 * _MIB), "a": b"old"})[:-1024].rstrip(b"\0")
    twice += bytes(-len(twice) % 512) + tar({"a": b"new" * 3, "z": os.urandom(20)})
    await brought(made(twice), place, tmp_path / "source")
    converted = await convert(place)
    async with place.image("app:2") as image:
        _, _, (blob,) = await contents(image)
    assert Digest.of(blob) == converted.layers[0].descriptor.digest


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("damage", ["a bit", "the end"])
async def test_a_layer_that_is_damaged_in_containerds_folder_is_never_published(
    damage: str, way: str, in_containerd: tuple[Place, PrivateContainerd], tmp_path: Path
) -> None:
    place, containerd = in_containerd
    image = made()
    await brought(image, place, tmp_path / "source")
    digest = Digest.of(image.compressed[0])
    path = containerd.root / "root/io.containerd.content.v1.content/blobs/sha256" / digest.hex
    data = path.read_bytes()
    path.chmod(0o644)
    # The bit is in the middle of noise: the tar can be read all the same.
    path.write_bytes(data[: 2 * _MIB] + bytes([data[2 * _MIB] ^ 1]) + data[2 * _MIB + 1 :] if damage == "a bit" else data[:_MIB])
    with pytest.RaisesGroup(pytest.RaisesExc(BlobMismatch, match=f"containerd: blob {digest}"), flatten_subgroups=True):
        await convert(place)
    with pytest.raises(ImageNotFound):
        async with place.image("app:2"):
            pass
    path.write_bytes(data)


@pytest.mark.usefixtures("nothing_left")
async def test_a_layer_that_is_no_tar_is_said_to_be_none(way: str, in_containerd: tuple[Place, PrivateContainerd], tmp_path: Path) -> None:
    place, _ = in_containerd
    await brought(made(os.urandom(2 * _MIB)), place, tmp_path / "source")
    with pytest.RaisesGroup(InvalidLayer, flatten_subgroups=True):
        await convert(place)


@pytest.mark.usefixtures("nothing_left")
async def test_files_that_come_first_are_read_out_of_what_is_still_coming(
    way: str, in_containerd: tuple[Place, PrivateContainerd], tmp_path: Path
) -> None:
    place, _ = in_containerd
    await brought(made(), place, tmp_path / "source")
    converted = await convert(place, options=WriteOptions("zstd:chunked", prioritized=("small", "hello")))
    async with place.image("app:2") as image:
        _, _, (blob,) = await contents(image)
    assert Digest.of(blob) == converted.layers[0].descriptor.digest


@pytest.mark.usefixtures("nothing_left")
async def test_a_whole_layer_is_given_checked(way: str, in_containerd: tuple[Place, PrivateContainerd], tmp_path: Path) -> None:
    place, containerd = in_containerd
    image = made()
    await brought(image, place, tmp_path / "source")
    digest = Digest.of(image.compressed[0])
    path = containerd.root / "root/io.containerd.content.v1.content/blobs/sha256" / digest.hex
    async with place.image("app:1") as found:
        manifest, _, layers = await contents(found)
        assert layers == image.compressed
        path.chmod(0o644)
        path.write_bytes(bytes([layers[0][0] ^ 1]) + layers[0][1:])
        with pytest.raises(BlobMismatch, match=f"containerd: blob {digest}"):
            async with found.open_blob(manifest.layers[0]):
                pass
    path.write_bytes(image.compressed[0])
