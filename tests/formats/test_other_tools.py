"""What we write is unpacked by other tools to the tree that the source is unpacked to, and read by the reference's own code."""

import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from ipfs_store.formats.options import Written
from ipfs_store.formats.writer import write_layer
from tests.containerd import PrivateContainerd
from tests.formats.blobs import VECTORS
from tests.formats.test_writing import LAZY, uncompressed
from tests.requirements import require_root, require_tool
from tests.sources.made import CONFIG, MANIFEST, described, encode, layout_files, named, sha256, write_folder, write_tar
from tests.trees import Seen, differences, look

OURS = frozenset((".prefetch.landmark", ".no.prefetch.landmark", "stargz.index.json"))
_MEDIA = {"": "", "gzip": "+gzip", "zstd": "+zstd"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_root()
    path = tmp_path_factory.mktemp("tools") / "input.tar"
    subprocess.run([sys.executable, VECTORS.parent / "make_input.py", path], check=True)
    return path


@pytest.fixture(scope="module")
def blobs(source: Path) -> dict[str, tuple[Path, Written]]:
    """Every lazy format and option: the blob and what was said of it."""
    made = {}
    for name, options in LAZY.items():
        path = source.parent / name.replace(" ", "-")
        made[name] = (path, write_layer(source, path, options))
    return made


def unequal(ours: dict[str, Seen], theirs: dict[str, Seen], *but: str) -> list[str]:
    """Differences, apart from the times of the two directories that the tar does not have, and of the paths ``but``."""
    assert len(ours) > 50
    untimed = tuple(f"{path}: mtime_ns" for path in (".", "usr/share", *but))
    return [line for line in differences(ours, theirs) if not line.startswith(untimed)]


def manifest(layer: bytes, diff_id: str, compression: str, annotations: dict[str, str]) -> list[bytes]:
    """Manifest, config and the layer of an image of one layer."""
    config = encode({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [diff_id]}})
    described_layer = described(f"application/vnd.oci.image.layer.v1.tar{_MEDIA[compression]}", layer, annotations=annotations)
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described(CONFIG, config), "layers": [described_layer]}
    return [encode(document), config, layer]


def gnu_tar(raw: bytes, folder: Path) -> Path:
    folder.mkdir()
    command = [
        "tar",
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        "--same-owner",
        "--delay-directory-restore",
        "-xpf",
        "-",
        "-C",
        folder,
    ]
    subprocess.run(command, input=raw, check=True)
    return folder


@pytest.mark.parametrize("name", LAZY)
def test_gnu_tar(name: str, source: Path, blobs: dict[str, tuple[Path, Written]], tmp_path: Path) -> None:
    raw = uncompressed(blobs[name][0].read_bytes(), LAZY[name])
    ours, theirs = gnu_tar(raw, tmp_path / "ours"), gnu_tar(source.read_bytes(), tmp_path / "theirs")
    assert not unequal(look(ours, skip=OURS), look(theirs))


@pytest.mark.parametrize("name", LAZY)
def test_python_tarfile(name: str, source: Path, blobs: dict[str, tuple[Path, Written]], tmp_path: Path) -> None:
    trees = []
    for number, raw in enumerate((uncompressed(blobs[name][0].read_bytes(), LAZY[name]), source.read_bytes())):
        with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
            tar.extractall(tmp_path / str(number), numeric_owner=True, filter="fully_trusted")
        trees.append(look(tmp_path / str(number), skip=OURS))
    assert not unequal(*trees, "usr/bin/alias")  # it sets no times of symbolic links


@pytest.mark.parametrize("name", [name for name, options in LAZY.items() if options.compression == "gzip"])
def test_umoci(name: str, source: Path, blobs: dict[str, tuple[Path, Written]], tmp_path: Path) -> None:
    umoci = require_tool("umoci")
    path, written = blobs[name]
    raw = source.read_bytes()
    trees = []
    for number, parts in enumerate((
        manifest(path.read_bytes(), written.diff_id, "gzip", dict(written.annotations)),
        manifest(raw, f"sha256:{sha256(raw)}", "", {}),
    )):  # fmt: skip
        layout = write_folder(tmp_path / f"layout{number}", layout_files([described(MANIFEST, parts[0], **named("v1"))], parts))
        bundle = tmp_path / f"bundle{number}"
        subprocess.run([umoci, "unpack", "--image", f"{layout}:v1", bundle], check=True, capture_output=True)
        trees.append(look(bundle / "rootfs", skip=OURS))
    assert not unequal(*trees, "usr")  # which is touched again when it makes usr/share


@pytest.fixture(scope="module")
def containerd() -> Iterator[PrivateContainerd]:
    require_root()
    with tempfile.TemporaryDirectory(prefix="ft-", dir="/tmp") as name, PrivateContainerd(Path(name) / "c", "1.6") as daemon:
        yield daemon


def imported(daemon: PrivateContainerd, parts: list[bytes], name: str, folder: Path) -> Path:
    """The image in containerd, unpacked there; returns where it is mounted."""
    archive = write_tar(folder / "image.tar", layout_files([described(MANIFEST, parts[0], **named(name=name))], parts))
    daemon.ctr("image", "import", "--snapshotter", "native", archive)
    (folder / "mounted").mkdir()
    daemon.ctr("image", "mount", "--snapshotter", "native", name, folder / "mounted")
    return folder / "mounted"


@pytest.mark.containerd
@pytest.mark.parametrize("name", ["estargz", "grouped", "prioritized", "kept", "zstd", "zstd kept", "zstd for podman"])
def test_containerd_unpacks_it_and_ctr_remote_finds_its_toc(
    name: str, source: Path, blobs: dict[str, tuple[Path, Written]], containerd: PrivateContainerd, tmp_path: Path
) -> None:
    path, written = blobs[name]
    raw = source.read_bytes()
    trees = []
    for case, parts in {
        "ours": manifest(path.read_bytes(), written.diff_id, written.compression, dict(written.annotations)),
        "theirs": manifest(raw, f"sha256:{sha256(raw)}", "", {}),
    }.items():
        (tmp_path / case).mkdir()
        image = f"test.invalid/{case}:{name.replace(' ', '-')}"
        mounted = imported(containerd, parts, image, tmp_path / case)
        trees.append(look(mounted, skip=OURS))
        subprocess.run(["umount", mounted], check=True)
    assert not unequal(*trees)
    if not written.toc:
        flag = ["--zstdchunked"] if written.compression == "zstd" else []
        command = [require_tool("ctr-remote"), "--address", containerd.address, "image", "get-toc-digest", *flag, written.digest]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert found.strip() == written.toc_digest


def test_skopeo_takes_it_and_compresses_the_same_tar_to_the_same_files(
    source: Path, blobs: dict[str, tuple[Path, Written]], tmp_path: Path
) -> None:
    """skopeo's own zstd:chunked of the same tar says of every entry what ours says, but for offsets and chunks."""
    skopeo = require_tool("skopeo")
    path, written = blobs["zstd kept"]
    parts = manifest(path.read_bytes(), written.diff_id, "zstd", dict(written.annotations))
    write_folder(tmp_path / "ours", layout_files([described(MANIFEST, parts[0], **named("v1"))], parts))
    subprocess.run([skopeo, "copy", f"oci:{tmp_path}/ours:v1", f"dir:{tmp_path}/copied"], check=True, capture_output=True)
    assert (tmp_path / "copied" / written.digest.removeprefix("sha256:")).read_bytes() == path.read_bytes()
    raw = source.read_bytes()
    parts = manifest(raw, f"sha256:{sha256(raw)}", "", {})
    write_folder(tmp_path / "plain", layout_files([described(MANIFEST, parts[0], **named("v1"))], parts))
    command = [
        skopeo,
        "copy",
        "--dest-compress-format",
        "zstd:chunked",
        "--dest-compress",
        f"oci:{tmp_path}/plain:v1",
        f"dir:{tmp_path}/theirs",
    ]
    subprocess.run(command, check=True, capture_output=True)
    (layer,) = json.loads((tmp_path / "theirs" / "manifest.json").read_text())["layers"]
    theirs = _toc((tmp_path / "theirs" / layer["digest"].removeprefix("sha256:")).read_bytes())
    ours = _toc(path.read_bytes())
    theirs["var/xattr"]["xattrs"]["user.empty"] = ""  # which its writer of 2022 loses
    assert ours == theirs


def _toc(blob: bytes) -> dict[str, dict[str, object]]:
    """The entries of a zstd:chunked blob by name, without what depends on how it is cut."""
    size = 64 if blob[-8:] == b"GNUlInUx" else 40
    offset, length = (int.from_bytes(blob[len(blob) - size + at :][:8], "little") for at in (0, 8))
    document = json.loads(zstandard.ZstdDecompressor().decompressobj().decompress(blob[offset : offset + length]))
    cut = ("offset", "endOffset", "chunkSize", "chunkOffset", "chunkDigest", "userName", "groupName")
    return {
        str(entry["name"]).rstrip("/"): {
            key: value for key, value in entry.items() if key not in cut and value != "0001-01-01T00:00:00Z"  # Go's zero time
        }
        for entry in document["entries"]
        if entry["type"] != "chunk"
    }  # fmt: skip
