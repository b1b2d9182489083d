"""Archives and layouts: found out by content, read without unpacking, checked to the last byte."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import zstandard

from ipfs_store.errors import BlobMismatch, ImageNotFound, InvalidDescriptor, InvalidInput, StorageFailed
from ipfs_store.images.sources import open_image
from ipfs_store.oci import Descriptor, Digest, Index
from tests.requirements import require_root, require_tool
from tests.sources.conftest import Opener, contents
from tests.sources.made import (
    INDEX,
    MadeImage,
    described,
    docker_files,
    encode,
    image,
    layout_files,
    named,
    sha256,
    tar,
    write_folder,
    write_tar,
)

NAME = "docker.io/library/thing:1"


def one_image() -> tuple[MadeImage, dict[str, bytes]]:
    made = image("below", "above")
    return made, layout_files([made.descriptor(**named("1", NAME))], made.blobs)


async def test_a_layout_gives_its_blobs_in_place(tmp_path: Path, opened: Opener) -> None:
    made, files = one_image()
    folder = write_folder(tmp_path / "layout", files)
    for source in (folder, f"oci:{folder}", f"oci:{folder}:1", f"oci:{folder}:{NAME}", f"{folder}:thing:1"):
        async with opened(source) as found:
            assert found.name == NAME
            manifest, config, layers = await contents(found)
            assert (config, layers) == (made.config, made.compressed)
            async with found.open_blob(manifest.layers[0]) as path:
                assert path == folder / "blobs/sha256" / manifest.layers[0].digest.hex


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        ("", bytes),
        (".gz", gzip.compress),
        (".zst", zstandard.compress),
        (".xz", lzma.compress),
        (".bz2", bz2.compress),
        (".two-frames.zst", lambda data: zstandard.compress(data[:5000]) + zstandard.compress(data[5000:])),
    ],
)
async def test_an_archive_may_be_compressed(suffix: str, compress: Callable[[bytes], bytes], tmp_path: Path, opened: Opener) -> None:
    made, files = one_image()
    for kind, packed in (("oci-archive", files), ("docker-archive", docker_files((made, [NAME])))):
        archive = tmp_path / f"{kind}.tar{suffix}"
        archive.write_bytes(compress(tar(packed)))
        for source in (archive, f"{kind}:{archive}"):
            async with opened(source) as found:
                assert found.name == NAME
                _, config, layers = await contents(found)
                assert config == made.config
                assert layers == (list(made.layers) if kind == "docker-archive" else made.compressed)


async def test_names_with_a_dot_in_front_are_the_same(tmp_path: Path, opened: Opener) -> None:
    made, files = one_image()
    archive = write_tar(tmp_path / "image", {f"./{name}": data for name, data in files.items()})
    async with opened(archive) as found:
        assert (await contents(found))[2] == made.compressed


async def test_what_docker_save_writes_today_is_read_as_a_layout(tmp_path: Path, opened: Opener) -> None:
    made, files = one_image()
    archive = write_tar(tmp_path / "image.tar", {**files, **docker_files((made, [NAME]))})
    async with opened(archive) as found:
        assert (await contents(found))[2] == made.compressed
    async with opened(f"docker-archive:{archive}") as found:
        assert (await contents(found))[2] == made.layers


async def test_a_docker_archive_becomes_an_oci_image(tmp_path: Path, opened: Opener) -> None:
    made = image("below", "above")
    archive = write_tar(tmp_path / "image.tar", docker_files((made, ["thing:1"])))
    async with opened(archive) as found:
        manifest, _, _ = await contents(found)
        assert manifest.media_type == "application/vnd.oci.image.manifest.v1+json"
        assert manifest.config.media_type == "application/vnd.oci.image.config.v1+json"
        assert [layer.media_type for layer in manifest.layers] == ["application/vnd.oci.image.layer.v1.tar"] * 2
        assert [layer.digest.hex for layer in manifest.layers] == [sha256(layer) for layer in made.layers]


async def test_compressed_layers_of_a_docker_archive_say_so(tmp_path: Path, opened: Opener) -> None:
    made = image("below", "above")
    files = docker_files((made, ["thing:1"]))
    below, above = json.loads(files["manifest.json"])[0]["Layers"]
    files[below], files[above] = gzip.compress(files[below]), zstandard.compress(files[above])
    async with opened(write_tar(tmp_path / "image.tar", files)) as found:
        manifest, _, layers = await contents(found)
        assert [layer.media_type.rpartition("+")[2] for layer in manifest.layers] == ["gzip", "zstd"]
        assert layers == [files[below], files[above]]


async def test_links_inside_of_an_archive_lead_to_layers(tmp_path: Path, opened: Opener) -> None:
    made = image("only")
    files = docker_files((made, ["thing:1"]))
    (link,) = json.loads(files["manifest.json"])[0]["Layers"]
    layer = files.pop(link)
    archive = tmp_path / "image.tar"
    with tarfile.open(archive, "w") as packed:
        for name, data in {**files, "data.tar": layer}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
        symbolic = tarfile.TarInfo(link)
        symbolic.type, symbolic.linkname = tarfile.SYMTYPE, "../data.tar"
        packed.addfile(symbolic)
    async with opened(archive) as found:
        assert (await contents(found))[2] == [layer]


async def test_one_of_several_is_chosen_by_name(tmp_path: Path, opened: Opener) -> None:
    first, second = image("first"), image("second")
    docker = write_tar(tmp_path / "docker.tar", docker_files((first, ["a/first:1", "a/also:1"]), (second, [])))
    entries = [first.descriptor(**named("1", "docker.io/a/first:1")), second.descriptor(**named("second"))]
    layout = write_folder(tmp_path / "layout", layout_files(entries, [*first.blobs, *second.blobs]))
    for source, config, name in (
        (f"{docker}:a/first:1", first.config, "docker.io/a/first:1"),
        (f"{docker}:docker.io/a/also:1", first.config, "docker.io/a/also:1"),
        (f"{docker}:@1", second.config, ""),
        (f"docker-archive:{docker}:a/first:1", first.config, "docker.io/a/first:1"),
        (f"{layout}:a/first:1", first.config, "docker.io/a/first:1"),
        (f"oci:{layout}:second", second.config, ""),
        (f"oci:{layout}:sha256:{sha256(second.manifest)}", second.config, ""),
    ):
        async with opened(source) as found:
            assert ((await contents(found))[1], found.name) == (config, name), source
    for archive in (docker, layout):
        with pytest.raises(ImageNotFound, match=r"several images: .*a/first:1") as caught:
            async with opened(archive):
                pass
        assert caught.value.hint == f"choose one: {archive}:NAME"
        with pytest.raises(ImageNotFound, match=r"has no image 'third'; it has .*a/first:1"):
            async with opened(f"{archive}:third"):
                pass
    with pytest.raises(ImageNotFound, match="no image number 2; it has 2"):
        async with opened(f"{docker}:@2"):
            pass


async def test_a_tag_is_no_name_outside_of_its_layout(tmp_path: Path, opened: Opener) -> None:
    made = image("x")
    folder = write_folder(tmp_path / "layout", layout_files([made.descriptor(**named("latest"))], made.blobs))
    async with opened(folder) as found:
        assert found.name == ""
        assert found.root.annotations == {}


async def test_platforms_side_by_side_become_an_index(tmp_path: Path, opened: Opener) -> None:
    images = [image("x", architecture=name) for name in ("amd64", "arm64")]
    entries = [made.descriptor(platform={"os": "linux", "architecture": made.architecture}, **named("1", NAME)) for made in images]
    files = layout_files(entries, [blob for made in images for blob in made.blobs])
    async with opened(write_tar(tmp_path / "image.tar", files)) as found:
        assert found.name == NAME
        index = Index.parse(await found.fetch(found.root), media_type=found.root.media_type)
        assert [str(item.platform) for item in index.manifests] == ["linux/amd64", "linux/arm64"]


async def test_an_index_below_index_json_is_the_image(tmp_path: Path, opened: Opener) -> None:
    made = image("x")
    index = encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": [made.descriptor()]})
    files = layout_files([described(INDEX, index, **named("1", NAME))], [index, *made.blobs])
    async with opened(write_tar(tmp_path / "image.tar", files)) as found:
        assert await found.fetch(found.root) == index


async def test_a_damaged_blob_is_never_given(tmp_path: Path, opened: Opener) -> None:
    made, files = one_image()
    layer = f"blobs/sha256/{sha256(made.compressed[1])}"
    config = f"blobs/sha256/{sha256(made.config)}"
    for name, data, told in (
        (layer, made.compressed[1][:-1] + b"x", "is damaged"),
        (layer, made.compressed[1] + b"x", "its descriptor says"),
        (config, made.config[:-1] + b" ", "is damaged"),
    ):
        wrong = {**files, name: data}
        for source in (write_folder(tmp_path / "layout", wrong), write_tar(tmp_path / "image.tar", wrong)):
            with pytest.raises(BlobMismatch, match=told):
                async with opened(source) as found:
                    await contents(found)


async def test_a_damaged_docker_archive_is_refused(tmp_path: Path, opened: Opener) -> None:
    made = image("x")
    files = docker_files((made, ["thing:1"]))
    listed = json.loads(files["manifest.json"])[0]
    with pytest.raises(BlobMismatch, match=r"\.json is damaged"):
        async with opened(write_tar(tmp_path / "a.tar", {**files, listed["Config"]: made.config + b" "})):
            pass
    layer = listed["Layers"][0]
    with pytest.raises(BlobMismatch, match="is damaged"):
        async with opened(write_tar(tmp_path / "b.tar", {**files, layer: bytes(len(files[layer]))})) as found:
            await contents(found)
    two = encode([{**listed, "Layers": [layer, layer]}])
    with pytest.raises(InvalidDescriptor, match=r"2 layers in manifest\.json, 1 in"):
        async with opened(write_tar(tmp_path / "c.tar", {**files, "manifest.json": two})):
            pass


async def test_a_blob_that_is_missing_is_named(tmp_path: Path, opened: Opener) -> None:
    made, files = one_image()
    digest = sha256(made.compressed[0])
    del files[f"blobs/sha256/{digest}"]
    for source in (write_folder(tmp_path / "layout", files), write_tar(tmp_path / "image.tar", files)):
        with pytest.raises(ImageNotFound, match=f"does not have blob sha256:{digest}"):
            async with opened(source) as found:
                await contents(found)


async def test_links_in_a_layout_are_refused(tmp_path: Path, opened: Opener) -> None:
    made, files = one_image()
    layer = f"blobs/sha256/{sha256(made.compressed[0])}"
    folder = write_folder(tmp_path / "file", files)
    (folder / layer).rename(tmp_path / "elsewhere")
    (folder / layer).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidInput, match="is a symbolic link"):
        async with opened(folder) as found:
            await contents(found)
    folder = write_folder(tmp_path / "folder", files)
    (folder / "blobs").rename(tmp_path / "blobs")
    (folder / "blobs").symlink_to(tmp_path / "blobs")
    with pytest.raises(InvalidInput, match="blobs is a symbolic link"):
        async with opened(folder) as found:
            await contents(found)


async def test_paths_that_lead_out_of_an_archive_find_nothing(tmp_path: Path, opened: Opener) -> None:
    made = image("x")
    secret = tmp_path / "secret"
    secret.write_bytes(made.layers[0])
    files = docker_files((made, ["thing:1"]))
    listed = json.loads(files["manifest.json"])[0]
    for path in ("../secret", str(secret)):
        wrong = {**files, "manifest.json": encode([{**listed, "Layers": [path]}])}
        with pytest.raises(ImageNotFound, match="does not have the layer"):
            async with opened(write_tar(tmp_path / "image.tar", wrong)):
                pass


async def test_a_fifo_in_a_layout_is_not_waited_for(tmp_path: Path, opened: Opener) -> None:
    made, files = one_image()
    folder = write_folder(tmp_path / "layout", files)
    layer = folder / "blobs/sha256" / sha256(made.compressed[0])
    layer.unlink()
    os.mkfifo(layer)
    with pytest.raises(InvalidInput, match="no plain file"):
        async with opened(folder) as found:
            await contents(found)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "no whole tar|empty"),
        (b"hello\n" * 300, "no whole tar"),
        (tar({"etc/passwd": b"root"}), "is a tar, but no image"),
        (gzip.compress(tar({"index.json": b"{}" * 9999}))[:-40], "is damaged"),
        (b"\x1f\x8b" + b"x" * 100, "is damaged"),
        (b"BZh9" + b"x" * 100, "is damaged"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 100, "is damaged"),
        (tar({"oci-layout": b"{}", "index.json": b"{}"}), "layout of version"),
        (tar({"oci-layout": b'{"imageLayoutVersion":"9.0"}', "index.json": b"{}"}), "layout of version '9.0'"),
        (tar({"index.json": b"[]"}), "expected a JSON object"),
        (tar({"index.json": b'{"manifests":[]}'}), "lists none"),
        (tar({"index.json": b'{"manifests":[{"mediaType":"text/plain"}]}'}), "no digest"),
        (tar({"manifest.json": b"{}"}), "not that of a Docker archive"),
        (tar({"manifest.json": b"[]"}), "manifest.json is empty"),
        (tar({"manifest.json": b"\xff"}), "manifest.json is not JSON"),
        (tar({"manifest.json": b'[{"Config":"x","Layers":[]}]'}), "does not have the config 'x'"),
        (tar({"manifest.json": b'[{"Config":"x","Layers":[1]}]'}), "not that of a Docker archive"),
        (tar({"repositories": b"{}"}), "before 2016"),
    ],
)
async def test_what_is_no_image_is_told_in_a_line(data: bytes, told: str, tmp_path: Path, opened: Opener) -> None:
    file = tmp_path / "thing.tar"
    file.write_bytes(data)
    with pytest.raises((InvalidInput, ImageNotFound), match=told) as caught:
        async with opened(file):
            pass
    assert str(file) in caught.value.message
    assert "\n" not in caught.value.message


async def test_a_path_that_is_not_there_is_no_reference(tmp_path: Path, opened: Opener) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for source, told in (
        (tmp_path / "missing", "no such file"),
        ("missing.tar.gz", "no such file"),
        ("./missing", "no such file"),
        (f"oci:{tmp_path}/missing", "no such folder"),
        (f"docker-archive:{tmp_path}/missing:x", "no such file"),
        (empty, "no OCI layout"),
        (f"oci-archive:{empty}", "is a folder, and no archive"),
        ("oci:/etc/hostname", "is no folder"),
        ("/dev/null", "neither a file nor a folder"),
        ("", "no image is named"),
    ):
        with pytest.raises((InvalidInput, ImageNotFound), match=told):
            async with opened(source):
                pass


async def test_another_package_brings_a_source(tmp_path: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "brought-1.0.dist-info"
    package.mkdir()
    (package / "entry_points.txt").write_text("[ipfs_store.sources]\nbrought = brought_source:open_source\n")
    (tmp_path / "brought_source.py").write_text(
        "class Image:\n"
        "    def __init__(self, name): self.name = name\n"
        "    async def aclose(self): self.closed = True\n"
        "def open_source(name, options): return Image(name)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    async with opened("brought:some/name") as found:
        assert found.name == "some/name"
    assert found.closed  # type: ignore[attr-defined]
    with pytest.raises(InvalidInput, match="no source of images is called 'nobody'"):
        async with open_image("x", kind="nobody"):
            pass


@pytest.fixture
def small_disk(tmp_path: Path) -> object:
    """A folder on a disk of 1 MiB."""
    require_root()
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.root
async def test_a_full_disk_is_told_and_left_empty(tmp_path: Path, small_disk: Path) -> None:
    from ipfs_store.images.sources import SourceOptions

    made = MadeImage([tar({"big": os.urandom(3 << 20)})])
    files = layout_files([made.descriptor()], made.blobs)
    plain, packed = write_tar(tmp_path / "image.tar", files), tmp_path / "image.tar.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes(), 1))
    for source in (plain, packed):
        with pytest.raises(StorageFailed, match=f"{small_disk}: cannot keep a layer there: No space left"):
            async with open_image(str(source), options=SourceOptions(folder=small_disk)) as found:
                await contents(found)
        usage = os.statvfs(small_disk)
        assert usage.f_bfree >= usage.f_blocks - 1


async def test_other_tools_archives_hold_what_their_layout_holds(tmp_path: Path, opened: Opener) -> None:
    skopeo = require_tool("skopeo")
    made, files = one_image()
    folder = write_folder(tmp_path / "layout", files)
    for target in ("oci-archive", "docker-archive"):
        archive = tmp_path / f"{target}.tar"
        await trio.run_process([skopeo, "copy", "-q", f"oci:{folder}:1", f"{target}:{archive}:{NAME}"])
        async with opened(archive) as found:
            assert found.name == NAME
            _, config, layers = await contents(found)
            assert json.loads(config) == json.loads(made.config)
            assert layers == (list(made.layers) if target == "docker-archive" else made.compressed)


async def test_a_document_is_found_by_its_digest_alone(tmp_path: Path, opened: Opener) -> None:
    _, files = one_image()
    async with opened(write_folder(tmp_path / "layout", files)) as found:
        nowhere = Descriptor("text/plain", Digest.of(b"nowhere"), 7)
        with pytest.raises(ImageNotFound, match=str(nowhere.digest)):
            await found.fetch(nowhere)
