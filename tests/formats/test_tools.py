"""Layers that other tools write on the spot are read, listed and verified, file by file."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ipfs_store.formats.reader import LayerReader, open_reader
from tests.containerd import PrivateContainerd
from tests.formats.blobs import BytesBlob, of_entry, of_tar
from tests.requirements import require_tool
from tests.sources.made import MadeImage, described, layout_files, named, write_folder, write_tar


@dataclass(frozen=True)
class Made:
    """A layer as a tool wrote it."""

    blob: bytes
    descriptor: dict[str, Any]
    diff_id: str


@pytest.fixture(scope="module")
def tar(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layer of the vectors, and what they lack: holes, many chunks, equal files, a file of zeros."""
    path = tmp_path_factory.mktemp("tools") / "layer.tar"
    shutil.copy(source, path)
    made = random.Random(7)
    noise = made.randbytes(200_000)  # skopeo 1.9 breaks off with "short write" at 700,000, or at a hole of a megabyte
    with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as archive:
        for name, data in {
            "holes": noise[:100_000] + bytes(5000) + noise[:5] + bytes(2000) + noise[5:60_000],
            "zeros": bytes(500_000),
            "noise": noise,
            "opt/noise-again": noise,
            "text": b"".join(b"line %d\n" % number for number in range(200_000)),
        }.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(data), 1_700_000_000, 0o640
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory, tar: Path) -> Iterator[PrivateContainerd]:
    with PrivateContainerd(tmp_path_factory.mktemp("c"), "1.6") as running:
        image = MadeImage([tar.read_bytes()])
        archive = running.root / "image.tar"
        write_tar(archive, layout_files([image.descriptor(**named(name="example.com/a:1"))], image.blobs))
        running.ctr("image", "import", archive)
        yield running


def converted(containerd: PrivateContainerd, *options: str) -> Made:
    """The layer as Debian's ctr-remote converts it."""
    name = "example.com/a:" + "".join(options).replace("=", "-").strip("-")
    command = [require_tool("ctr-remote"), "--address", containerd.address, "image", "convert", *options, "--oci", "example.com/a:1", name]
    subprocess.run(command, check=True, capture_output=True)
    exported = containerd.root / "exported"
    containerd.ctr("image", "export", f"{exported}.tar", name)
    shutil.rmtree(exported, ignore_errors=True)
    with tarfile.open(f"{exported}.tar") as archive:
        archive.extractall(exported, filter="data")
    return first_layer(exported)


def first_layer(layout: Path) -> Made:
    def document(digest: str) -> Any:
        return json.loads((layout / "blobs" / digest.replace(":", "/")).read_text())

    index = json.loads((layout / "index.json").read_text())
    manifest = document(index["manifests"][0]["digest"])
    while "manifests" in manifest:
        manifest = document(manifest["manifests"][0]["digest"])
    layer = manifest["layers"][0]
    diff_id = document(manifest["config"]["digest"])["rootfs"]["diff_ids"][0]
    return Made((layout / "blobs" / layer["digest"].replace(":", "/")).read_bytes(), layer, diff_id)


async def assert_reads_as(made: Made, tar: Path, *, lazy: bool, ours: bool = True) -> LayerReader:
    """Everything that the tar has is there, and the blob is what its descriptor and config say."""
    reader = await open_reader(BytesBlob(made.blob), made.descriptor.get("annotations"))
    assert reader.lazy == lazy
    expected, contents = of_tar(tar)
    found = {entry.path: of_entry(entry) for entry in await reader.entries() if entry.path in expected}
    if not ours:
        found["var/xattr"][-1].setdefault("user.empty", b"")  # type: ignore[attr-defined]  # skopeo loses attributes without a value
    assert found == expected
    for path, data in contents.items():
        assert b"".join([piece async for piece in reader.read(path)]) == data, path
    verified = await reader.verify(digest=made.descriptor["digest"], diff_id=made.diff_id if ours else "")
    assert [line for line in verified.differences if ours or not line.startswith("'var/xattr'")] == []
    return reader


@pytest.mark.root
@pytest.mark.parametrize(
    "options",
    [("--estargz",), ("--estargz", "--estargz-chunk-size=65536"), ("--estargz", "--estargz-compression-level=1"), ("--zstdchunked",)],
    ids=" ".join,
)
async def test_what_ctr_remote_converts_is_read(options: tuple[str, ...], containerd: PrivateContainerd, tar: Path) -> None:
    made = converted(containerd, *options)
    reader = await assert_reads_as(made, tar, lazy=True)
    assert reader.format == ("zstd:chunked" if "--zstdchunked" in options else "estargz")


@pytest.mark.root
async def test_what_ctr_remote_uncompresses_is_read(containerd: PrivateContainerd, tar: Path) -> None:
    await assert_reads_as(converted(containerd, "--uncompress"), tar, lazy=False)


def copied(tar: Path, folder: Path, form: str) -> Made:
    """The layer as skopeo compresses it."""
    image = MadeImage([tar.read_bytes()])
    (layer,) = image.compressed = list(image.layers)  # uncompressed, or skopeo would leave it as it is
    plain = described("application/vnd.oci.image.layer.v1.tar", layer)
    image.manifest = json.dumps({**json.loads(image.manifest), "layers": [plain]}).encode()
    write_folder(folder / "in", layout_files([image.descriptor(**named(tag="a"))], image.blobs))
    command = [
        require_tool("skopeo"),
        "copy",
        "--insecure-policy",
        "--dest-compress-format",
        form,
        f"oci:{folder}/in:a",
        f"oci:{folder}/out:a",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return first_layer(folder / "out")


@pytest.mark.parametrize("form", ["zstd:chunked", "zstd", "gzip"])
async def test_what_skopeo_writes_is_read(form: str, tar: Path, tmp_path: Path) -> None:
    lazy = form == "zstd:chunked"
    reader = await assert_reads_as(copied(tar, tmp_path, form), tar, lazy=lazy, ours=not lazy)
    assert reader.format == {"zstd": "tar+zstd", "gzip": "tar+gzip"}.get(form, form)
    chunks = {entry.path: entry.chunks for entry in await reader.entries()}
    assert not lazy or (len(chunks["text"]) > 10 and any(chunk.is_hole for chunk in chunks["holes"]))


async def test_what_umoci_adds_is_read(tar: Path, tmp_path: Path) -> None:
    await assert_reads_as(added(tar, tmp_path / "layout"), tar, lazy=False)


def added(tar: Path, layout: Path) -> Made:
    """The layer as umoci compresses it."""
    umoci = require_tool("umoci")
    image = f"{layout}:a"
    for command in (["init", "--layout", layout], ["new", "--image", image], ["raw", "add-layer", "--image", image, tar]):
        subprocess.run([umoci, *command], check=True, capture_output=True)
    return first_layer(layout)
