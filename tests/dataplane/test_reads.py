"""What a reader of the mount gets while blobs come late, wrong, or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.dataplane.conftest import SOON, Plane, impatient
from tests.dataplane.synthetic import from_tar, of_files
from tests.patience import PATIENCE, until
from tests.trees import differences, look
from tests.vectors import make_input

pytestmark = [pytest.mark.root, pytest.mark.fuse]
TEXT = bytes(range(256)) * 4096  # 1 MiB: 16 chunks


def reader(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["cat", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_every_entry_is_as_tar_unpacks_it(plane: Plane, tmp_path: Path) -> None:
    make_input.main(str(tmp_path / "input.tar"))
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", tmp_path / "input.tar", "-C", unpacked], check=True)
    left = look(plane.mount("input", from_tar(tmp_path / "input.tar")))
    right = look(unpacked)
    found = differences(left, right)
    # What overlayfs is told of whiteouts is not what the archive says; the root and usr/share are in no tar.
    wanted = {"only on the left: var/gone", "only on the right: var/.wh.gone", "only on the right: var/opaque/.wh..wh..opq"}
    odd = (".: ", "usr/share: ")
    assert {line for line in found if not line.startswith(odd)} == wanted
    gone = (plane.folder / "mount/1/var/gone").lstat()
    assert (gone.st_mode & 0o170000, gone.st_rdev) == (0o020000, 0)
    assert os.getxattr(plane.folder / "mount/1/var/opaque", "trusted.overlay.opaque") == b"y"
    assert (plane.folder / "mount/1/var/xattr").stat().st_mtime_ns % 10**9 == 123_456_789


def test_many_readers_of_one_chunk_are_one_fetch(plane: Plane) -> None:
    root = plane.mount("one", of_files({"file": TEXT[:50_000]}))
    plane.faults("hold")
    with ThreadPoolExecutor(8) as pool:
        # Direct reads: each reader asks us itself, instead of waiting for the page that another one asked for.
        results = [pool.submit(_direct, root / "file") for _ in range(8)]
        plane.until_waiting("one", readers=8)
        plane.faults("ok")
        plane.let_go()
        assert {result.result() for result in results} == {TEXT[:50_000]}
    assert len(plane.reads("one")) == 1
    assert (root / "file").read_bytes() == TEXT[:50_000]
    assert len(plane.reads("one")) == 1


def _direct(path: Path) -> bytes:
    import mmap

    handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        buffer = mmap.mmap(-1, 1 << 16)
        return buffer[: os.preadv(handle, [buffer], 0)]
    finally:
        os.close(handle)


def test_a_node_that_comes_back_in_time_is_a_delay_and_no_error(plane: Plane) -> None:
    root = plane.mount("late", of_files({"file": TEXT}))
    plane.faults("away", "missing", "ok")
    assert (root / "file").read_bytes() == TEXT
    assert "EIO" not in plane.log()


def test_a_node_that_stays_away_is_eio_and_a_line_that_names_layer_file_and_cid(plane: Plane) -> None:
    root = plane.mount("gone", of_files({"dir/file": b"x" * 1000}))
    plane.dataplane = impatient(plane.dataplane)
    plane.faults("away")
    with pytest.raises(OSError) as caught:
        (root / "dir/file").read_bytes()
    assert caught.value.errno == errno.EIO
    (line,) = [line for line in plane.log().splitlines() if "EIO" in line]
    assert all(
        part in line
        for part in ("/dir/file", "sha256:" + "d" * 64, "ipfs://gone", f"nothing in {SOON:g} s", "the node of the test is away")
    )
    plane.faults("ok")

    def read() -> bytes:
        try:
            return (root / "dir/file").read_bytes()
        except OSError:
            return b""

    assert until(read) == b"x" * 1000  # what failed is not asked for again at once, but soon


def test_wrong_bytes_are_never_seen(plane: Plane) -> None:
    root = plane.mount("lied", of_files({"once": b"a" * 5000, "ever": b"b" * 5000}))
    plane.faults("wrong", "ok")
    assert (root / "once").read_bytes() == b"a" * 5000
    plane.faults("wrong")
    with pytest.raises(OSError, match="Input/output error"):
        (root / "ever").read_bytes()
    plane.faults("ok")


def test_what_one_layer_gives_wrong_comes_from_another_that_has_it(plane: Plane) -> None:
    """A file of many chunks; the second layer has them in a file of another name, and some in a third."""
    first = plane.mount("first", of_files({"file": TEXT, "own": b"own" * 20_000}))
    plane.mount("second", of_files({"elsewhere": TEXT[: 9 * 65_536]}))
    plane.mount("third", of_files({"other": b"x", "rest": TEXT[9 * 65_536 :]}))
    blob = plane.folder / "first.blob"
    blob.write_bytes(bytes(byte ^ 1 for byte in blob.read_bytes()))
    assert (first / "file").read_bytes() == TEXT
    with pytest.raises(OSError, match="Input/output error"):
        (first / "own").read_bytes()
    assert plane.log().count("EIO") == 1
    assert "EIO: /own of layer" in plane.log()


def test_a_reader_that_is_killed_while_it_waits_is_gone_at_once_and_its_fetch_with_it(plane: Plane) -> None:
    root = plane.mount("held", of_files({"file": TEXT[:50_000], "other": b"o" * 100}))
    plane.faults("hold")
    waiting = reader(root / "file")
    plane.until_waiting("held")
    waiting.send_signal(signal.SIGKILL)
    waiting.communicate(timeout=PATIENCE)
    plane.until_waiting("held", 0)
    plane.faults("ok")
    assert (root / "other").read_bytes() == b"o" * 100
    assert (root / "file").read_bytes() == TEXT[:50_000]


def test_a_reader_that_leaves_does_not_disturb_the_others(plane: Plane) -> None:
    root = plane.mount("shared", of_files({"file": TEXT[:50_000]}))
    plane.faults("hold")
    first = reader(root / "file")
    plane.until_waiting("shared")
    got: list[bytes] = []
    second = threading.Thread(target=lambda: got.append(_direct(root / "file")))
    second.start()
    plane.until_waiting("shared", readers=2)
    first.kill()
    first.communicate(timeout=PATIENCE)
    plane.faults("ok")
    plane.let_go()
    second.join(PATIENCE)
    assert got == [TEXT[:50_000]]
    assert len(plane.reads("shared")) == 1


def test_a_layer_that_stalls_does_not_stop_another(plane: Plane) -> None:
    stalled = plane.mount("stalled", of_files({f"f{number}": TEXT[number : number + 3000] for number in range(40)}))
    well = plane.mount("well", of_files({"file": TEXT}))
    plane.faults("hold")
    waiting = [reader(stalled / f"f{number}") for number in range(40)]
    try:
        plane.until_waiting("stalled", 40)
        plane.faults("ok")
        assert (well / "file").read_bytes() == TEXT
    finally:
        for process in waiting:
            process.kill()
            process.communicate(timeout=PATIENCE)


def test_directories_are_listed_from_anywhere(plane: Plane) -> None:
    names = [f"{number:05d}-{'n' * 200}" for number in range(3000)]
    root = plane.mount("wide", of_files({f"d/{name}": b"" for name in names}))
    with os.scandir(root / "d") as entries:
        first = [entry.name for entry in entries]
    assert first == names
    handle = os.open(root / "d", os.O_RDONLY)
    try:
        assert sorted(os.listdir(handle)) == names
        os.lseek(handle, 0, os.SEEK_SET)
        assert sorted(os.listdir(handle)) == names
    finally:
        os.close(handle)
    size = os.statvfs(root)
    assert (size.f_bfree, size.f_namemax, size.f_files >= 3000) == (0, 255, True)


def test_a_layer_that_nobody_has_is_an_error_and_leaves_nothing(plane: Plane) -> None:
    from snapshotter.dataplane.client import DataPlaneFailed
    from tests.dataplane.conftest import Source

    with pytest.raises(DataPlaneFailed, match="nobody has nowhere"):
        plane.dataplane.mount(7, Source("nowhere"))
    assert plane.dataplane.status().layers == []
    assert not (plane.folder / "mount/7").exists()
