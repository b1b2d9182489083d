"""What other tools make of what we converted, and we of what they did."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ipfs_store.formats.blob import RangeReader
from ipfs_store.formats.layer import open_layer
from ipfs_store.formats.names import ANNOTATION_EXTERNAL_TOC_LAYER, ANNOTATION_TOC_DIGEST
from ipfs_store.formats.options import WriteOptions
from ipfs_store.images.conversion import ConvertedImage, ConvertOptions, convert_image, layer_converter
from ipfs_store.images.model import Image
from ipfs_store.images.sources import SourceOptions, open_image
from ipfs_store.images.targets import Target
from ipfs_store.images.tocs import blob_toc
from ipfs_store.oci import Config, Descriptor, Digest, Manifest
from snapshotter.containerd.source import open_blob
from tests.containerd import PrivateContainerd
from tests.containerd_client.images import BusyboxImage
from tests.requirements import require_root, require_tool
from tests.sources.registries import docker_registry
from tests.targets.places import Place
from tests.trees import differences, look

NAME = "docker.io/test/busybox:1"


async def convert(image: Image, target: Target, written: WriteOptions | None, **options: Any) -> ConvertedImage:
    layers = layer_converter(written, folder=target.folder) if written is not None else None
    return await convert_image(image, target, ConvertOptions(convert=layers, **options))


async def documents(image: Image, root: Descriptor | None = None) -> tuple[Manifest, Config]:
    root = root or image.root
    manifest = Manifest.parse(await image.fetch(root), media_type=root.media_type)
    return manifest, Config.parse(await image.fetch(manifest.config))


def tool(name: str, *arguments: object) -> str:
    done = subprocess.run([require_tool(name), *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_a_container_runs_from_a_converted_image(
    in_containerd: tuple[Place, PrivateContainerd], written: WriteOptions, tmp_path: Path
) -> None:
    place, containerd = in_containerd
    async with place.target("app:1") as target:
        converted = await convert(BusyboxImage(tmp_path), target, written)
    name, namespace = converted.names[-1], place.namespace
    assert namespace is not None
    containerd.ctr("snapshots", "--snapshotter", "overlayfs", "ls", namespace=namespace)
    containerd.ctr("image", "mount", "--rw=false", name, str(_folder(tmp_path, "mounted")), namespace=namespace)
    try:
        assert (tmp_path / "mounted/hello").read_bytes() == b"hello from the image\n"
        assert not (tmp_path / "mounted/etc/gone").exists()
    finally:
        tool("umount", tmp_path / "mounted")
    printed = containerd.ctr("run", "--rm", name, f"c{os.getpid()}", "cat", "/hello", namespace=namespace)
    assert printed == "hello from the image\n"


async def test_containerd_knows_what_belongs_together(in_containerd: tuple[Place, PrivateContainerd], tmp_path: Path) -> None:
    place, containerd = in_containerd
    async with place.target("app:1") as target:
        converted = await convert(BusyboxImage(tmp_path, index=True), target, WriteOptions("estargz"), platforms=None)
    namespace = place.namespace
    assert namespace is not None
    async with place.image("app:1") as image:
        index = json.loads(await image.fetch(image.root))
        item = Descriptor.from_json(index["manifests"][0])
        manifest, config = await documents(image, item)
    lines = containerd.ctr("content", "ls", namespace=namespace).splitlines()
    labels = {Digest.parse(line.split()[0]): line for line in lines if line.startswith("sha256:")}
    assert f"containerd.io/gc.ref.content.m.0={item.digest}" in labels[converted.root.digest]
    assert f"containerd.io/gc.ref.content.config={manifest.config.digest}" in labels[item.digest]
    for number, (layer, diff_id) in enumerate(zip(manifest.layers, config.diff_ids, strict=True)):
        assert f"containerd.io/gc.ref.content.l.{number}={layer.digest}" in labels[item.digest]
        assert f"containerd.io/uncompressed={diff_id}" in labels[layer.digest]
    # Everything hangs on the record: with it gone, nothing is left.
    containerd.ctr("image", "rm", "--sync", converted.names[-1], namespace=namespace)
    assert containerd.ctr("content", "ls", "-q", namespace=namespace) == ""


async def test_ctr_remote_finds_the_tocs(in_containerd: tuple[Place, PrivateContainerd], written: WriteOptions, tmp_path: Path) -> None:
    if written.format == "tar" or written.external_toc or written.audience != "stargz-snapshotter":
        return
    place, containerd = in_containerd
    async with place.target("app:1") as target:
        converted = await convert(BusyboxImage(tmp_path), target, written)
    for layer in converted.layers:
        kind = ["--zstdchunked"] if written.format == "zstd:chunked" else []
        found = tool(
            "ctr-remote", "--address", containerd.address, "--namespace", place.namespace, "image", "get-toc-digest", *kind,
            layer.descriptor.digest,
        )  # fmt: skip
        assert found.strip() == layer.descriptor.annotations[ANNOTATION_TOC_DIGEST]
        async with open_blob(str(layer.descriptor.digest), SourceOptions(address=place.address, namespace=place.namespace)) as blob:
            assert (await blob_toc(blob)).digest == found.strip()


async def test_what_ctr_remote_converted_stays_byte_for_byte(in_containerd: tuple[Place, PrivateContainerd], tmp_path: Path) -> None:
    place, containerd = in_containerd
    async with place.target("app:1") as target:
        await convert(BusyboxImage(tmp_path), target, None)
    tool(
        "ctr-remote", "--address", containerd.address, "--namespace", place.namespace, "image", "convert", "--estargz", "--oci",
        place.full("app:1"), place.full("app:theirs"),
    )  # fmt: skip
    async with place.image("app:theirs") as image, place.target("app:ours") as target:
        converted = await convert(image, target, WriteOptions("estargz"))
        assert converted.root.digest == image.root.digest
        assert not any(layer.converted for layer in converted.layers)


@pytest.mark.root
async def test_umoci_unpacks_what_was_converted(written: WriteOptions, everywhere: dict[str, Place], tmp_path: Path) -> None:
    require_root()
    if written.format == "zstd:chunked":
        return  # Debian's umoci knows no zstd
    place = everywhere["oci"]
    source = BusyboxImage(tmp_path)
    async with place.target("before") as target:
        await convert(source, target, None)
    async with place.target("after") as target:
        await convert(source, target, written)
    for name in ("before", "after"):
        tool("umoci", "unpack", "--image", f"{place.at}:{name}", tmp_path / name)
    gone = {"stargz.index.json", ".no.prefetch.landmark"}
    assert differences(look(tmp_path / "before/rootfs"), look(tmp_path / "after/rootfs", skip=frozenset(gone))) == []


async def test_skopeo_copies_what_was_converted(written: WriteOptions, everywhere: dict[str, Place], tmp_path: Path) -> None:
    place = everywhere["oci"]
    async with place.target("after") as target:
        converted = await convert(BusyboxImage(tmp_path), target, written)
    shown = json.loads(tool("skopeo", "inspect", f"oci:{place.at}:after"))
    assert shown["Layers"] == [str(layer.descriptor.digest) for layer in converted.layers]
    assert shown["Digest"] == str(converted.root.digest)
    with docker_registry(tmp_path / "registry") as host:
        tool("skopeo", "copy", "--preserve-digests", "--dest-tls-verify=false", f"oci:{place.at}:after", f"docker://{host}/app:1")
        async with open_image(f"{host}/app:1", options=SourceOptions(folder=tmp_path)) as image:
            assert image.root.digest == converted.root.digest


async def test_docker_archives_are_read_by_skopeo(everywhere: dict[str, Place], tmp_path: Path) -> None:
    place = everywhere["docker-archive"]
    source = BusyboxImage(tmp_path)
    async with place.target(NAME) as target:
        await convert(source, target, WriteOptions("estargz"))
    tool("skopeo", "copy", f"docker-archive:{place.at}:{NAME}", f"oci:{tmp_path / 'layout'}:x")
    async with open_image(f"oci:{tmp_path / 'layout'}:x", options=SourceOptions(folder=tmp_path)) as image:
        _, config = await documents(image)
        assert config.document["config"]["Cmd"] == ["cat", "/hello"]
        assert len(config.diff_ids) == 2


@pytest.mark.parametrize("target", ["oci-archive", "docker-archive"])
async def test_ctr_imports_archives(
    target: str, in_containerd: tuple[Place, PrivateContainerd], everywhere: dict[str, Place], tmp_path: Path
) -> None:
    place, containerd = in_containerd
    archive = everywhere[target]
    async with archive.target(NAME) as there:
        await convert(BusyboxImage(tmp_path), there, WriteOptions("estargz"))
    namespace = place.namespace
    assert namespace is not None
    containerd.ctr("image", "import", archive.at, namespace=namespace)
    assert containerd.ctr("run", "--rm", NAME, f"i{os.getpid()}", namespace=namespace) == "hello from the image\n"


@pytest.mark.parametrize("keep", [False, True], ids=["new", "kept"])
async def test_external_tocs_lie_where_stargz_snapshotter_looks(keep: bool, everywhere: dict[str, Place], tmp_path: Path) -> None:
    """nativeconverter/estargz/externaltoc: the image's tag with -esgztoc, a layer for each TOC, found by its annotation."""
    place = everywhere["registry"]
    source = BusyboxImage(tmp_path)
    async with place.target("app:1") as target:
        converted = await convert(source, target, WriteOptions("estargz", external_toc=True, keep_diff_id=keep))
    assert converted.names == (f"{place.at}/app:1-esgztoc", f"{place.at}/app:1")
    async with place.image("app:1") as image, place.image("app:1-esgztoc") as tocs:
        manifest, config = await documents(image)
        listed, _ = await documents(tocs)
        assert (list(config.diff_ids) == [Digest.of(data) for data in source.tars]) == keep
        by_layer = {item.annotations[ANNOTATION_EXTERNAL_TOC_LAYER]: item for item in listed.layers}
        assert [item.digest for item in listed.layers] == sorted((item.digest for item in listed.layers), key=str)
        for layer in manifest.layers:
            async with image.open_blob(layer) as blob, tocs.open_blob(by_layer[str(layer.digest)]) as toc:
                opened = await open_layer(Reader(blob), layer.annotations, external_toc=Reader(toc))
                assert any(entry.path in ("hello", "bin/busybox") for entry in opened.toc.entries)


async def test_a_kept_diff_id_keeps_the_config(everywhere: dict[str, Place], tmp_path: Path) -> None:
    place = everywhere["oci"]
    source = BusyboxImage(tmp_path)
    async with place.target("app") as target:
        await convert(source, target, WriteOptions("estargz", external_toc=True, keep_diff_id=True))
    async with place.image("app") as image:
        manifest, _ = await documents(image)
        assert await image.fetch(manifest.config) == source.config


async def test_every_format_becomes_every_other(written: WriteOptions, everywhere: dict[str, Place], tmp_path: Path) -> None:
    """The files stay what they are, and so do the DiffIDs' relation to the blobs, however often an image is converted."""
    place = everywhere["oci"]
    async with place.target("first") as target:
        await convert(BusyboxImage(tmp_path), target, written)
    for number, to in enumerate((WriteOptions("zstd:chunked"), WriteOptions("estargz"), WriteOptions("tar"))):
        name = f"then{number}"
        async with place.image("first") as image, place.target(name) as target:
            converted = await convert(image, target, to)
        async with place.image(name) as image:
            manifest, config = await documents(image)
            for layer, diff_id, result in zip(manifest.layers, config.diff_ids, converted.layers, strict=True):
                assert result.converted == (result.source.digest != layer.digest)
                async with image.open_blob(layer) as path:
                    assert _unpacked_digest(path) == diff_id
            kinds = {layer.media_type.rpartition(".")[2] for layer in manifest.layers}
            assert kinds == {{"zstd:chunked": "tar+zstd", "estargz": "tar+gzip", "tar": "tar"}[to.format]}
            if to.format == "tar":
                assert not any("stargz" in key or "zstd" in key for layer in manifest.layers for key in layer.annotations)


def _unpacked_digest(path: Path) -> Digest:
    magic = path.read_bytes()[:4]
    command = (
        ["gzip", "-dc"] if magic[:2] == b"\x1f\x8b" else ["zstd", "-dcq"] if magic[1:] in (b"\xb5\x2f\xfd", b"\x2a\x4d\x18") else ["cat"]
    )
    require_tool(command[0])
    with path.open("rb") as file:
        return Digest.of(subprocess.run(command, stdin=file, capture_output=True, check=True).stdout)


class Reader(RangeReader):
    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()

    @property
    def size(self) -> int:
        return len(self._data)

    async def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


def _folder(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name
