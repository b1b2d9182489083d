"""What every target does, whatever it is: an image comes back byte for byte, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ipfs_store.errors import ImageNotFound, InvalidInput
from ipfs_store.images.conversion import ConvertOptions, convert_image
from ipfs_store.images.model import Image
from ipfs_store.images.sources import SourceOptions, open_image
from ipfs_store.images.targets import Target
from ipfs_store.oci import Index, Manifest
from ipfs_store.oci.media_types import is_index
from ipfs_store.oci.platform import parse_platform
from tests.sources.conftest import contents
from tests.sources.made import MadeImage, image, layout_files, tar, write_folder
from tests.targets.places import Place


def new_image(architecture: str = "amd64") -> MadeImage:
    """Another one each time: containerd shares blobs among namespaces."""
    return MadeImage([tar({"hello": b"hello", "noise": os.urandom(70_000)}), tar({"salt": os.urandom(20)})], architecture)


def layout(folder: Path, *images: MadeImage) -> str:
    entries = [made.descriptor(platform={"os": "linux", "architecture": made.architecture}) for made in images]
    return f"oci:{write_folder(folder, layout_files(entries, [blob for made in images for blob in made.blobs]))}"


async def copy(source: str, place: Place, name: str = "app:1", **options: object) -> None:
    async with open_image(source, options=SourceOptions(folder=place.scratch)) as found, place.target(name) as target:
        await convert_image(found, target, ConvertOptions(**options))  # type: ignore[arg-type]


async def test_an_image_comes_back_byte_for_byte(place: Place, tmp_path: Path) -> None:
    made = new_image()
    await copy(layout(tmp_path / "source", made), place)
    async with place.image("app:1") as found:
        manifest, config, layers = await contents(found)
        assert config == made.config
        assert layers == made.compressed
        if place.kind != "docker-archive":  # whose manifest is made when it is read
            assert await found.fetch(found.root) == made.manifest
        assert manifest.config.media_type == "application/vnd.oci.image.config.v1+json"


async def test_an_index_comes_back_whole(place: Place, tmp_path: Path) -> None:
    images = [new_image(name) for name in ("amd64", "arm64")]
    source = layout(tmp_path / "source", *images)
    if place.kind == "docker-archive":
        with pytest.raises(InvalidInput, match="several platforms"):
            await copy(source, place, platforms=None)
        return
    await copy(source, place, platforms=None)
    async with place.image("app:1") as found:
        assert is_index(found.root.media_type)
        index = Index.parse(await found.fetch(found.root), media_type=found.root.media_type)
        assert [str(item.platform) for item in index.manifests] == ["linux/amd64", "linux/arm64"]
        for item, made in zip(index.manifests, images, strict=True):
            assert await found.fetch(item) == made.manifest
            manifest = Manifest.parse(made.manifest, media_type=item.media_type)
            async with found.open_blob(manifest.layers[0]) as path:
                assert path.read_bytes() == made.compressed[0]


class Halfway(Exception):
    """What breaks a conversion off."""


class BreakingOff:
    """An image whose second layer cannot be read."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self.name, self.root, self.fetch = image.name, image.root, image.fetch
        self._left = 1

    def open_blob(self, descriptor: object) -> object:
        if not self._left:
            raise Halfway
        self._left -= 1
        return self._image.open_blob(descriptor)  # type: ignore[arg-type]


async def test_a_conversion_that_breaks_off_leaves_nothing(place: Place, everywhere: dict[str, Place], tmp_path: Path) -> None:
    source = layout(tmp_path / "source", new_image())
    with pytest.RaisesGroup(Halfway):
        async with open_image(source) as found, place.target("app:1") as target:
            await convert_image(BreakingOff(found), target)  # type: ignore[arg-type]
    with pytest.raises(ImageNotFound):
        async with place.image("app:1"):
            pass
    if place.kind in ("oci", "oci-archive", "docker-archive"):
        assert not Path(place.at).exists()  # noqa: ASYNC240
    if place.namespace is not None:
        containerd = everywhere.running(place.kind)  # type: ignore[attr-defined]
        assert containerd.ctr("content", "ls", "-q", namespace=place.namespace) == ""
        assert containerd.ctr("leases", "ls", "-q", namespace=place.namespace) == ""


async def test_nothing_is_seen_before_the_commit(place: Place, tmp_path: Path) -> None:
    made = new_image()
    seen: list[str] = []

    class Watching:
        def __init__(self, target: Target) -> None:
            self._target = target

        def __getattr__(self, name: str) -> object:
            return getattr(self._target, name)

        async def commit(self, images: object) -> tuple[str, ...]:
            try:
                async with place.image("app:1"):
                    seen.append("an image")
            except (ImageNotFound, InvalidInput) as error:
                seen.append(type(error).__name__)
            return await self._target.commit(images)  # type: ignore[arg-type]

    async with open_image(layout(tmp_path / "source", made)) as found, place.target("app:1") as target:
        await convert_image(found, Watching(target))  # type: ignore[arg-type]
    assert seen in (["ImageNotFound"], ["InvalidInput"])
    async with place.image("app:1") as written:
        assert (await contents(written))[2] == made.compressed


async def test_other_images_stay(place: Place, tmp_path: Path) -> None:
    first, second = new_image(), new_image()
    await copy(layout(tmp_path / "first", first), place, "app:1")
    await copy(layout(tmp_path / "second", second), place, "app:2")
    for name, made in (("app:1", first), ("app:2", second)):
        if name == "app:1" and not place.many:
            continue  # an archive is replaced as a whole
        async with place.image(name) as found:
            assert (await contents(found))[2] == made.compressed


async def test_an_image_of_the_same_name_is_replaced(place: Place, tmp_path: Path) -> None:
    first, second = new_image(), new_image()
    for number, made in enumerate((first, second)):
        await copy(layout(tmp_path / str(number), made), place)
    async with place.image("app:1") as found:
        assert (await contents(found))[2] == second.compressed


async def test_what_is_there_is_not_read_again(place: Place, tmp_path: Path) -> None:
    if not place.many:
        return  # an archive is written anew
    made = new_image()
    source = layout(tmp_path / "source", made)
    await copy(source, place, "app:1")
    async with open_image(source) as found, place.target("app:1") as target:
        reading = BreakingOff(found)
        reading._left = 0
        await convert_image(reading, target)  # type: ignore[arg-type]


async def test_one_of_several_platforms_is_no_index(place: Place, tmp_path: Path) -> None:
    images = [new_image(name) for name in ("amd64", "arm64")]
    await copy(layout(tmp_path / "source", *images), place)
    async with place.image("app:1") as found:
        assert not is_index(found.root.media_type)
        assert (await contents(found))[1] in [made.config for made in images]


async def test_a_platform_that_is_not_there_is_told(place: Place, tmp_path: Path) -> None:
    source = layout(tmp_path / "source", image("a", architecture="amd64"), image("b", architecture="arm64"))
    with pytest.raises(ImageNotFound, match="its platforms: linux/amd64, linux/arm64"):
        await copy(source, place, platforms=(parse_platform("linux/s390x"),))
