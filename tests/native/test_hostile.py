"""Images that try to reach out of themselves: each is harmless to every other image and to the host."""

from __future__ import annotations

import base64
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshotter.dataplane.client import DataPlaneFailed
from tests.native.conftest import Native, noise, tar_of
from tests.native.hostile import Items, entry, rewrite

pytestmark = [pytest.mark.root, pytest.mark.fuse]

SECRET = noise("secret", 20_000)
LIE = noise("lie", 20_000)


def hostile(native: Native, name: str, files: dict[str, bytes], edit: Callable[[Items], None], *, namespace: str = "") -> Path:
    native.write(name, tar_of(native.folder / f"{name}.tar", files))
    rewrite(native.folder / f"{name}.blob", edit)
    return native.overlay(native.image(name, namespace=namespace))


def honest(native: Native) -> Path:
    return native.root("honest", {"file": SECRET, "large": noise("large", 3 << 20)})


@pytest.mark.parametrize("first", ["hostile", "honest"])
def test_another_images_digest_with_chunks_of_its_own(native: Native, first: str) -> None:
    import hashlib

    claimed = "sha256:" + hashlib.sha256(SECRET).hexdigest()

    def edit(items: Items) -> None:
        entry(items, "file")["digest"] = claimed  # and the chunk digests of LIE

    def read_hostile() -> None:
        assert (hostile(native, "hostile", {"file": LIE}, edit) / "file").read_bytes() == LIE

    if first == "hostile":
        read_hostile()
    assert (honest(native) / "file").read_bytes() == SECRET
    if first == "honest":
        read_hostile()


@pytest.mark.parametrize("size", [10, 20_001])
def test_a_size_that_is_not_the_contents(native: Native, size: int) -> None:
    """A file of the honest image is claimed with all its digests, and another size, and asked for first."""

    def edit(items: Items) -> None:
        entry(items, "file")["size"] = size

    root = hostile(native, "hostile", {"file": SECRET}, edit)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        (root / "file").read_bytes()
    assert (honest(native) / "file").read_bytes() == SECRET


def test_chunks_that_do_not_add_up_to_the_files_digest(native: Native) -> None:
    """The honest file's digest and its chunks in another order."""

    def edit(items: Items) -> None:
        chunks = [item for item in items if item["name"].strip("/") == "large"]
        first, second = chunks[0], chunks[1]
        for key in ("offset", "chunkDigest"):
            first[key], second[key] = second[key], first[key]

    data = noise("large", 3 << 20)
    root = hostile(native, "hostile", {"large": data}, edit)
    try:
        assert (root / "large").read_bytes() != data
    except OSError as error:
        assert error.errno == errno.EIO
    assert (honest(native) / "large").read_bytes() == data


def test_overlay_attributes_of_a_layer_mean_nothing(native: Native, tmp_path: Path) -> None:
    honest_root = honest(native)
    (honest_root / "file").read_bytes()
    stored = next(iter(native.stored()))
    below = native.image("below", native.write("below", tar_of(tmp_path / "below.tar", {"dir/kept": b"kept"})))

    def edit(items: Items) -> None:
        redirect = f"/{stored[:2]}/{stored}".encode()
        for prefix in ("trusted.overlay.", "user.overlay."):
            for item in items:
                attributes = item.setdefault("xattrs", {})
                attributes[f"{prefix}opaque"] = base64.b64encode(b"y").decode()
                attributes[f"{prefix}metacopy"] = ""
                attributes[f"{prefix}redirect"] = base64.b64encode(redirect).decode()
                attributes[f"{prefix}origin"] = base64.b64encode(b"\0" * 20).decode()

    name = "hostile"
    native.write(name, tar_of(native.folder / f"{name}.tar", {"dir/own": b"own", "dir/empty": b""}))
    rewrite(native.folder / f"{name}.blob", edit)
    root = native.overlay(native.image(name), below)
    assert (root / "dir/own").read_bytes() == b"own"
    assert (root / "dir/empty").read_bytes() == b""
    assert sorted(os.listdir(root / "dir")) == ["empty", "kept", "own"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/../../b", "n" * 256, "a\0b"])
def test_names_that_no_file_can_have(native: Native, name: str) -> None:
    def edit(items: Items) -> None:
        entry(items, "file")["name"] = name

    with pytest.raises(DataPlaneFailed, match="name"):
        hostile(native, "hostile", {"file": SECRET}, edit)
    assert native.dataplane.status().layers == []
    assert (honest(native) / "file").read_bytes() == SECRET


def test_devices_and_set_id_files_are_what_the_mount_allows(native: Native) -> None:
    def edit(items: Items) -> None:
        entry(items, "file")["mode"] = 0o6755
        items.append({"name": "device", "type": "block", "mode": 0o666, "devMajor": 7, "devMinor": 0, "modtime": ""})

    root = hostile(native, "hostile", {"file": SECRET}, edit)
    assert stat.S_IMODE((root / "file").stat().st_mode) == 0o6755
    os.system(f"mount --bind {root} {root} && mount -o remount,bind,nodev,nosuid {root}")
    try:
        with pytest.raises(PermissionError):
            (root / "device").open("rb")
        assert os.statvfs(root).f_flag & os.ST_NOSUID
    finally:
        os.system(f"umount {root}")


def test_an_image_that_names_anothers_file_gets_it_within_its_scope_only(native: Native) -> None:
    """With a cache for the machine, digests are enough; what that means is documented."""
    assert (honest(native) / "file").read_bytes() == SECRET
    name = "namesake"
    native.write(name, tar_of(native.folder / f"{name}.tar", {"file": SECRET}))
    root = native.overlay(native.image(name))
    blob = native.folder / f"{name}.blob"
    location = blob.read_bytes()
    blob.write_bytes(b"\0" * 4096 + location[4096:])  # it has the name and nothing else
    assert (root / "file").read_bytes() == SECRET
