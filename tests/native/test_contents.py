"""Files of a native mount: who fetches what, and where it is found after."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from tests.native.conftest import Native, noise, tar_of
from tests.trees import differences, look
from tests.vectors import make_input

pytestmark = [pytest.mark.root, pytest.mark.fuse]


def test_every_entry_is_as_tar_unpacks_it(native: Native, tmp_path: Path) -> None:
    make_input.main(str(tmp_path / "input.tar"))
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", tmp_path / "input.tar", "-C", unpacked], check=True)
    below = tar_of(tmp_path / "below.tar", {"var/gone": b"removed above", "var/opaque/old": b"hidden"})
    layers = {"input": tmp_path / "input.tar", "below": below}
    root = native.overlay(*(native.image(name, native.write(name, tar)) for name, tar in layers.items()))
    found = differences(look(root), look(unpacked))
    # The image hides what it deletes, and the root and usr/share are in no tar.
    wanted = {"only on the right: var/.wh.gone", "only on the right: var/opaque/.wh..wh..opq"}
    assert {line for line in found if not line.startswith((".: ", "usr/share: "))} == wanted


def test_a_small_file_is_native_in_the_container_that_asked_first(native: Native) -> None:
    files = {f"d/f{number}": noise(str(number), 1000 + number) for number in range(50)}
    root = native.root("one", files)
    assert native.reads() == 1 or native.reads() == 2  # the TOC
    for path, data in files.items():
        assert (root / path).read_bytes() == data
    assert len(native.stored()) == 50
    pid = native.dataplane.status().pid
    os.kill(pid, signal.SIGSTOP)
    try:
        subprocess.run(["timeout", "-s", "KILL", "20", "cat", *(root / path for path in files)], check=True, stdout=subprocess.DEVNULL)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_changes_of_metadata_fetch_nothing(native: Native) -> None:
    root = native.root("one", {f"f{number}": noise(str(number), 5000) for number in range(20)})
    before = native.reads()
    subprocess.run(["chown", "-R", "7:7", root], check=True)
    (root / "f1").chmod(0o600)
    (root / "f2").rename(root / "g2")
    os.utime(root / "f3")
    os.setxattr(root / "f4", "user.a", b"b")
    assert (
        subprocess.run(["find", root, "-type", "f", "-size", "+1k", "-user", "7"], capture_output=True, text=True).stdout.count("\n") == 20
    )
    assert native.reads() == before
    assert not native.stored()
    assert (root / "g2").read_bytes() == noise("2", 5000)
    assert (root / "f1").read_bytes() == noise("1", 5000)


def test_equal_files_of_two_layers_are_stored_once(native: Native) -> None:
    same = noise("same", 30_000)
    one = native.root("one", {"a": same, "b": noise("b", 100)})
    two = native.root("two", {"x/y": same, "c": noise("c", 100)})
    assert (one / "a").read_bytes() == same
    before = native.reads()
    assert (two / "x/y").read_bytes() == same
    assert native.reads() == before


def test_a_large_file_is_read_by_chunk(native: Native) -> None:
    data = noise("large", 5 << 20)
    root = native.root("one", {"large": data})
    with (root / "large").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        assert os.pread(file.fileno(), 10, 3 << 20) == data[3 << 20 : (3 << 20) + 10]
    assert native.status("one").misses < 5
    assert (root / "large").read_bytes() == data
    assert stat.S_IMODE((root / "large").stat().st_mode) == 0o644


def test_a_layer_whose_metadata_are_kept_is_mounted_without_its_source(native: Native, tmp_path: Path) -> None:
    digest = native.write("one", tar_of(tmp_path / "tar", {"a": b"text"}))
    native.image("one", digest)
    native.dataplane.unmount(1)
    before = native.reads()
    native.image("one", digest)
    assert native.reads() == before
