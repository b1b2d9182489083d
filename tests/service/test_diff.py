"""Layers of what was written: applied to the parent they give what the container saw, and nothing unchanged was read for them."""

from __future__ import annotations

import io
import os
import shutil
import socket
import stat
import struct
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import zstandard

from snapshotter.containerd.protos import diff_pb2, diff_pb2_grpc
from snapshotter.containerd.protos.mount_pb2 import Mount
from snapshotter.mounts.native import NativeMounter
from snapshotter.service.diff.changes import changes
from snapshotter.service.diff.grpc import DiffService, _mount
from snapshotter.service.diff.layer import write_layer
from snapshotter.service.snapshots import NotOurs, Snapshotter
from snapshotter.state import AlreadyExists
from tests.service.served import FolderMounter, mounted
from tests.service.test_native import MAPPED
from tests.service.test_remote import CIDS, labels
from tests.trees import differences, look

pytestmark = pytest.mark.root
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


@pytest.fixture
def snapshotter(tmp_path: Path, mounter: FolderMounter) -> Iterator[Snapshotter]:
    (tmp_path / "root").mkdir()
    native = NativeMounter(mounter, tmp_path / "root/images", "file") if mounter.native else None
    made = Snapshotter(tmp_path / "root", native or mounter, data=mounter.data if native else ())
    yield made
    made.close()


@pytest.fixture
def lower(snapshotter: Snapshotter, mounter: FolderMounter) -> Path:
    """The remote layer ``one``, and its tree."""
    tree = mounter.root / CIDS[0]
    for name in ("kept/deep/er", "renamed/sub", "emptied", "replaced", "opaque", "mode"):
        (tree / name).mkdir(parents=True)
    for name in (
        "kept/a",
        "kept/deep/er/b",
        "renamed/c",
        "renamed/sub/d",
        "emptied/e",
        "replaced/f",
        "opaque/g",
        "chmodded",
        "gone",
        "to-folder",
    ):
        (tree / name).write_text(name * 1000)
    os.link(tree / "kept/a", tree / "kept/twin")
    (tree / "link").symlink_to("kept/a")
    (tree / "big").write_bytes(os.urandom(3 << 20))
    with pytest.raises(AlreadyExists):
        snapshotter.prepare("extract", "", labels("one"))
    return tree


def change(root: Path) -> None:
    """All that a container can do to a file system."""
    (root / "chmodded").chmod(0o640)
    os.chown(root / "kept/deep/er/b", 12, 3_000_000_000)
    shutil.move(root / "renamed", root / "moved")  # portable mounts answer EXDEV, as overlayfs does without redirect_dir
    (root / "moved/new").write_text("in a renamed folder")
    (root / "moved/c").unlink()
    (root / "emptied/e").unlink()
    (root / "gone").unlink()
    shutil.rmtree(root / "replaced")
    (root / "replaced").write_text("a file now")
    (root / "to-folder").unlink()
    (root / "to-folder").mkdir()
    (root / "to-folder/inside").write_text("x")
    shutil.rmtree(root / "opaque")
    (root / "opaque").mkdir(mode=0o701)
    (root / "opaque/new").write_text("y")
    with (root / "big").open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"changed")
    os.link(root / "link", root / "link-twin", follow_symlinks=False)
    (root / "new").write_bytes(b"new" * 5000)
    os.link(root / "new", root / "kept/new-twin")
    os.link(root / "chmodded", root / "kept/chmodded-twin")
    os.setxattr(root / "new", "user.note", b"\xff\0binary")
    os.setxattr(root / "new", "security.capability", CAPABILITY)
    os.setxattr(root / "kept", "trusted.mine", b"t")
    os.mkfifo(root / "fifo", 0o622)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (root / ("n" * 200)).mkdir()
    (root / ("n" * 200) / ("m" * 250)).write_text("long")
    (root / "umlaut-ä-\udcff").write_text("odd name")
    (root / "target").symlink_to("./x//" + "y" * 300)
    os.utime(root / "new", ns=(1, 1_600_000_000_123_456_789))
    os.utime(root / "fifo", ns=(1, -1_500_000_000))
    (root / "mode").chmod(0o1777)
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(".", os.O_RDONLY)
        os.chdir(root)
        listener.bind("socket")
        os.chdir(here)
        os.close(here)


def apply(layer: bytes, root: Path) -> None:
    """Unpack as the image-spec says, with Python's own tar reader."""
    with tarfile.open(fileobj=io.BytesIO(layer), errors="surrogateescape") as tar:
        times = []
        for info in tar:
            path = root / info.name
            if path.name == ".wh..wh..opq":
                for inside in path.parent.iterdir():
                    remove(inside)
                continue
            if path.name.startswith(".wh."):
                remove(path.with_name(path.name[4:]))
                continue
            if path.is_symlink() or (path.exists() and not (path.is_dir() and info.isdir())):
                remove(path)
            if info.isdir():
                path.mkdir(exist_ok=True)
            elif info.islnk():
                os.link(root / info.linkname, path, follow_symlinks=False)
                continue
            elif info.issym():
                os.symlink(info.linkname, path)
            elif info.isreg():
                file = tar.extractfile(info)
                assert file is not None
                path.write_bytes(file.read())
            else:
                os.mknod(
                    path,
                    {tarfile.FIFOTYPE: stat.S_IFIFO, tarfile.CHRTYPE: stat.S_IFCHR}[info.type] | info.mode,
                    os.makedev(info.devmajor, info.devminor),
                )
            os.chown(path, info.uid, info.gid, follow_symlinks=False)
            if not info.issym():
                path.chmod(info.mode)
            for key, value in info.pax_headers.items():
                if key.startswith("SCHILY.xattr."):
                    os.setxattr(path, key[13:], value.encode("utf-8", "surrogateescape"), follow_symlinks=False)
            seconds, _, fraction = info.pax_headers.get("mtime", str(int(info.mtime))).lstrip("-").partition(".")
            at = int(seconds) * 10**9 + int(fraction.ljust(9, "0") or 0)
            times.append((path, -at if info.pax_headers.get("mtime", "").startswith("-") else at))
        for path, at in reversed(times):
            if path.exists() or path.is_symlink():
                os.utime(path, ns=(at, at), follow_symlinks=False)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def layer_of(snapshotter: Snapshotter, left: str, right: str, compression: str = "none", latest: int | None = None) -> bytes:
    out = io.BytesIO()
    before = list((snapshotter._scratch).iterdir())
    with snapshotter.written(snapshotter.mounts(left), snapshotter.mounts(right)) as upper:
        written = write_layer(changes(str(upper.folder), str(upper.merged)), str(upper.merged), out, compression, latest=latest)  # type: ignore[arg-type]
    assert list(snapshotter._scratch.iterdir()) == before
    assert written.size == len(out.getvalue())
    return out.getvalue()


def wire(snapshotter: Snapshotter, key: str) -> list[Mount]:
    return [Mount(type=mount.type, source=mount.source, options=mount.options) for mount in snapshotter.mounts(key)]


def parent_of(lower: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "applied"
    subprocess.run(["cp", "-a", lower, copy], check=True)
    return copy


def test_a_layer_applied_to_the_parent_is_what_the_container_saw(snapshotter: Snapshotter, lower: Path, tmp_path: Path) -> None:
    snapshotter.prepare("container", "one", {})
    snapshotter.view("parent", "one", {})
    with mounted(wire(snapshotter, "container"), tmp_path / "work") as root:
        change(root)
        layer = layer_of(snapshotter, "parent", "container")
        applied = parent_of(lower, tmp_path)
        apply(layer, applied)
        seen = look(root, skip=frozenset({"socket"}))
    # The number of names of files that have others in the parent, and the root's own time, are not in a layer.
    found = [line for line in differences(look(applied), seen) if not line.startswith((".: mtime_ns", "kept/a: ", "kept/twin: "))]
    assert found == []
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        names = tar.getnames()
    assert "moved/sub/d" in names and ".wh.renamed" in names
    assert not {"kept/a", "kept/twin", "opaque/g", "socket"} & set(names)


def test_a_committed_snapshot_gives_the_same_layer_and_others_build_on_it(snapshotter: Snapshotter, lower: Path, tmp_path: Path) -> None:
    snapshotter.prepare("container", "one", {})
    snapshotter.view("parent", "one", {})
    with mounted(wire(snapshotter, "container"), tmp_path / "work") as root:
        change(root)
    before = layer_of(snapshotter, "parent", "container")
    snapshotter.commit("container", "two", {})
    snapshotter.view("child", "two", {})
    assert layer_of(snapshotter, "parent", "child") == before
    snapshotter.prepare("next", "two", {})
    with mounted(wire(snapshotter, "next"), tmp_path / "work") as root:
        shutil.move(root / "moved/sub", root / "out")
        (root / "chmodded").chmod(0o600)
        second = layer_of(snapshotter, "child", "next")
        applied = parent_of(lower, tmp_path)
        apply(before, applied)
        apply(second, applied)
        found = differences(look(applied), look(root, skip=frozenset({"socket"})))
    # Changing one name of a linked file below parts it from the other, in a layer as on overlayfs, whose count of names then stays behind.
    expected = (".: mtime_ns", "kept/a: ", "kept/twin: ", "kept/chmodded-twin: nlink")
    assert [line for line in found if not line.startswith(expected)] == []


@pytest.mark.parametrize("mounter", ["native"], indirect=True)  # the data of a file cannot be taken away from a folder
def test_only_what_changed_is_read(snapshotter: Snapshotter, lower: Path, mounter: FolderMounter, tmp_path: Path) -> None:
    snapshotter.prepare("container", "one", {})
    snapshotter.view("parent", "one", {})
    with mounted(wire(snapshotter, "container"), tmp_path / "work") as root:
        (root / "kept").chmod(0o700)
        (root / "new").write_text("new")
        shutil.rmtree(mounter.data[1])
        mounter.data[1].mkdir()
        layer = layer_of(snapshotter, "parent", "container")
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        assert tar.getnames() == ["kept", "new"]


@pytest.mark.parametrize("mounter", ["native"], indirect=True)  # which shift owners
def test_shifted_owners_are_those_of_the_image_in_the_layer(
    snapshotter: Snapshotter, lower: Path, mounter: FolderMounter, tmp_path: Path
) -> None:
    snapshotter.prepare("container", "one", MAPPED)
    snapshotter.view("parent", "one", {})
    with mounted(wire(snapshotter, "container"), tmp_path / "work") as root:
        (root / "renamed").rename(root / "moved")
        os.chown(root / "chmodded", 100_000 + 7, 200_000 + 8)
    with tarfile.open(fileobj=io.BytesIO(layer_of(snapshotter, "parent", "container"))) as tar:
        owners = {info.name: (info.uid, info.gid) for info in tar if ".wh." not in info.name}
    assert owners == {"chmodded": (7, 8), "moved": (0, 0), "moved/c": (0, 0), "moved/sub": (0, 0), "moved/sub/d": (0, 0)}


def test_compressions_and_a_latest_time(snapshotter: Snapshotter, lower: Path, tmp_path: Path) -> None:
    snapshotter.prepare("container", "one", {})
    snapshotter.view("parent", "one", {})
    with mounted(wire(snapshotter, "container"), tmp_path / "work") as root:
        (root / "new").write_text("new")
        (root / "old").write_text("old")
        os.utime(root / "old", ns=(5, 1_500_000_000_000_000_005))
    plain = layer_of(snapshotter, "parent", "container", latest=1_600_000_000)
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        assert {info.name: info.mtime for info in tar} == {"new": 1_600_000_000, "old": pytest.approx(1_500_000_000, abs=1e-6)}
    assert layer_of(snapshotter, "parent", "container", latest=1_600_000_000) == plain
    packed = layer_of(snapshotter, "parent", "container", "gzip", latest=1_600_000_000)
    assert subprocess.run(["gzip", "-dc"], input=packed, capture_output=True, check=True).stdout == plain
    packed = layer_of(snapshotter, "parent", "container", "zstd", latest=1_600_000_000)
    assert zstandard.ZstdDecompressor().decompressobj().decompress(packed) == plain


def test_mounts_that_are_no_snapshot_and_its_parent_are_left_to_others(snapshotter: Snapshotter, lower: Path, tmp_path: Path) -> None:
    snapshotter.prepare("container", "one", {})
    snapshotter.prepare("base", "", {})
    snapshotter.commit("base", "committed", {})
    snapshotter.view("view", "committed", {})
    snapshotter.view("remote", "one", {})
    for left, right in (("view", "container"), ("container", "container"), ("view", "remote"), ("remote", "view")):
        with pytest.raises(NotOurs), snapshotter.written(snapshotter.mounts(left), snapshotter.mounts(right)):
            pass
    strange = [_mount(Mount(type="bind", source="/etc", options=["ro"]))]
    with pytest.raises(NotOurs), snapshotter.written([], strange):
        pass
    # One without a parent: the left side is an empty view, or nothing.
    snapshotter.view("nothing", "", {})
    for left_mounts in ([], snapshotter.mounts("nothing")):
        with snapshotter.written(left_mounts, snapshotter.mounts("view")) as upper:
            assert list(changes(str(upper.folder), str(upper.merged))) == []


def test_folders_nested_more_deeply_than_python_calls(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    found = list(changes(str(tmp_path), str(tmp_path)))
    assert len(found) == 1500
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_the_service_says_unimplemented_for_what_containerd_does_itself() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    diff_pb2_grpc.add_DiffServicer_to_server(DiffService(None), server)  # type: ignore[arg-type]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as caught:
            diff_pb2_grpc.DiffStub(channel).Apply(diff_pb2.ApplyRequest())
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
    finally:
        server.stop(None).wait()
