"""The kernel's calls, and what the probe makes of them."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipfs_store.errors import InvalidInput
from snapshotter.holder.table import covering, is_mount_point, mount_table, parse_table
from snapshotter.mounts import kernel
from snapshotter.mounts import stack as stacks
from snapshotter.mounts.idmap import GID_LABEL, UID_LABEL, IdMap, Range
from snapshotter.mounts.native import unmount_below
from snapshotter.mounts.probe import probe
from snapshotter.mounts.stack import Backing, Lower, Stack, Xino, mount_image, mount_stack
from tests.mounts.made import image_of
from tests.requirements import missing, require_root


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Path]:
    require_root()
    for name in ("tree", "data", "meta", "upper", "work", "root", "scratch"):
        (tmp_path / name).mkdir()
    (tmp_path / "tree/file").write_text("content")
    yield tmp_path
    unmount_below([tmp_path])


def loops(folder: Path) -> set[str]:
    """Loop devices on files below the folder."""
    found = set()
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # let go of meanwhile
            if backing.read_text().startswith(f"{folder}/"):
                found.add(backing.parts[3])
    return found


@pytest.mark.root
@pytest.mark.parametrize("backing", ["file", "loop"])
def test_an_image_is_mounted_by_file_and_by_loop_device_and_leaves_none(top: Path, backing: Backing) -> None:
    before = loops(top)
    (top / "image").write_bytes(image_of(top / "tree", top / "data"))
    mount_image(top / "image", top / "meta", backing)
    assert len(loops(top) - before) == (backing == "loop")
    mount_stack(Stack([Lower(top / "meta")], [top / "data"], top / "upper", top / "work"), top / "root", scratch=top / "scratch")
    assert (top / "root/file").read_text() == "content"
    kernel.unmount(top / "meta", lazy=True)
    assert (top / "root/file").read_text() == "content", "the overlay has a hold of its own"
    kernel.unmount(top / "root")
    assert loops(top) == before
    assert not kernel.unmount(top / "root")


# mov ebx, [esp+8]; lea ecx, [esp-512]; mov eax, 106 (stat); int 0x80; neg eax; mov ebx, eax; mov eax, 1 (exit); int 0x80
_STAT = bytes.fromhex("8b5c2408 8d8c2400feffff b86a000000 cd80 f7d8 89c3 b801000000 cd80")


def stat_of_32_bits(path: Path, folder: Path) -> int:
    """stat(2) as an i386 program calls it that was built without large files; its errno."""
    size = 84 + len(_STAT)
    header = struct.pack("<16sHHIIIIIHHHHHH", b"\x7fELF\1\1\1", 2, 3, 1, 0x8048054, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    program = folder / "stat"
    program.write_bytes(header + struct.pack("<8I", 1, 0, 0x8048000, 0x8048000, size, size, 5, 4096) + _STAT)
    program.chmod(0o755)
    try:
        return subprocess.run([program, path]).returncode
    except OSError as error:
        missing(f"a kernel that runs i386 programs ({error})")


@pytest.mark.root
@pytest.mark.parametrize(("xino", "expected", "devices"), [("on", errno.EOVERFLOW, 1), ("off", 0, 2)])
def test_32_bit_programs_or_one_device(top: Path, xino: Xino, expected: int, devices: int) -> None:
    """overlayfs tells layers of several file systems apart by high bits of the inode number or by st_dev; on a single one it need not."""
    (top / "image").write_bytes(image_of(top / "tree", top / "data"))
    mount_image(top / "image", top / "meta", "file")
    wanted = Stack([Lower(top / "meta")], [top / "data"], top / "upper", top / "work", xino)
    mount_stack(wanted, top / "root", scratch=top / "scratch")
    assert stat_of_32_bits(top / "root/file", top) == expected
    assert len({(top / "root" / name).stat().st_dev for name in ("", "file")}) == devices
    kernel.unmount(top / "root")
    options = f"index=off,lowerdir={top}/tree,upperdir={top}/upper,workdir={top}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", top / "root"], check=True)
    assert stat_of_32_bits(top / "root/file", top) == 0
    assert len({(top / "root" / name).stat().st_dev for name in ("", "file")}) == 1


@pytest.mark.root
def test_kernels_without_the_newer_parameters_take_120_layers_as_well(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lowers = []
    for number in range(120):
        folder = top / f"a-layer-with-a-name-that-makes-the-list-of-layers-longer-than-a-page-{number}"
        folder.mkdir()
        (folder / str(number)).write_text("x")
        lowers.append(Lower(folder))
    asked = []

    def refused(kind: str, parameters: object, *, attributes: int = 0) -> None:
        asked.append(kind)
        raise kernel.KernelRefused(22, "lowerdir+=...: Invalid argument")

    monkeypatch.setattr(stacks.kernel, "new_mount", refused)
    mount_stack(Stack(lowers, [top / "data"], top / "upper", top / "work"), top / "root", scratch=top / "scratch")
    assert asked == ["overlay"]
    assert len(list((top / "root").iterdir())) == 120


@pytest.mark.root
def test_a_failed_mount_says_what_the_kernel_says(top: Path) -> None:
    with pytest.raises(OSError, match="No such file or directory") as caught:
        mount_stack(Stack([Lower(top / "nothing")]), top / "root", scratch=top / "scratch")
    assert str(top / "nothing") in str(caught.value)
    (top / "image").write_bytes(b"no image" * 1000)
    with pytest.raises(OSError, match="erofs: Invalid argument"):
        mount_image(top / "image", top / "meta", "file")
    assert not is_mount_point(top / "meta")


@pytest.mark.root
def test_the_probe_says_what_works_and_leaves_nothing(top: Path) -> None:
    found = probe(top)
    assert found.native and "EROFS" in found.why
    assert [mounted.point for mounted in mount_table() if top in mounted.point.parents] == []
    assert not list(top.glob("probe-*"))


@pytest.mark.root
def test_the_probe_says_why_it_does_not_work(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A kernel whose overlayfs leaves metacopy off.
    monkeypatch.setattr(stacks, "_OPTIONS", (("index", "off"),))
    found = probe(top)
    assert not found.native
    assert found.why
    assert [mounted.point for mounted in mount_table() if top in mounted.point.parents] == []


def test_the_table_of_mounts_has_paths_as_they_are() -> None:
    line = r"48 27 0:41 / /a\040b/root rw,relatime shared:1 - overlay over\040lay rw,lowerdir+=/x"
    (mounted,) = parse_table(line)
    assert (mounted.device, mounted.point, mounted.kind, mounted.source) == ("0:41", Path("/a b/root"), "overlay", "over lay")
    assert mounted.shared
    table = parse_table(f"20 1 8:1 / / rw - ext4 /dev/vda rw\n{line}")
    assert covering(Path("/a b/root/x"), table) == mounted
    assert not covering(Path("/a b"), table).shared


def test_mappings_of_ids_are_read_applied_and_composed() -> None:
    labels = {UID_LABEL: "0:100000:1000,1000:5000:10", GID_LABEL: "0:200000:65536"}
    found = IdMap.from_labels(labels)
    assert found is not None
    assert found.outside(0, 7) == (100000, 200007)
    assert found.outside(1005, 0) == (5005, 200000)
    assert found.inside(5005, 200000) == (1005, 0)
    assert IdMap.parse(str(found)) == found
    for wrong in (
        lambda: found.outside(1010, 0),
        lambda: found.inside(0, 200000),
        lambda: Range.parse("0:1"),
        lambda: Range.parse("0:-1:5"),
    ):
        with pytest.raises(InvalidInput):
            wrong()
    assert IdMap.from_labels({}) is None
    with pytest.raises(InvalidInput):
        IdMap.from_labels({UID_LABEL: "0:1:1"})
    other = IdMap.parse("0:300000:65536 0:300000:65536")
    between = IdMap.between(found, other)
    assert between is not None
    assert between.uids == (Range(100000, 300000, 1000), Range(5000, 301000, 10))
    back = IdMap.between(found, None)
    assert back is not None
    assert back.outside(100005, 200000) == (5, 0)
    assert IdMap.between(found, found) is None


def test_unmounting_what_is_not_mounted_is_nothing(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        assert not kernel.unmount(tmp_path)
        assert not kernel.unmount(tmp_path / "nothing")
        assert subprocess.run(["mountpoint", "-q", tmp_path]).returncode != 0
