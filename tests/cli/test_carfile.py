"""ipfs-store export and import."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ipfs_store.cids import parse_cid
from tests.cli.conftest import NAME, Done, start
from tests.nodes.harm import lose
from tests.patience import PATIENCE
from tests.sources.made import MadeImage, layout_files, tar, write_tar

Run = Callable[..., Done]


def test_an_image_travels_in_a_file(ipfs_store: Run, archive: Path, machine: Path) -> None:
    pushed = json.loads(ipfs_store("ipfs-push", "--json", archive).out)
    file, other = machine / "image.car", ("--node-path", machine / "other")
    written = ipfs_store("export", "-o", file, "thing:1")
    assert (written.status, written.out) == (0, b"")
    assert written.err.splitlines()[-1].startswith("wrote ")
    again = json.loads(ipfs_store("export", "-q", "--json", "-o", file, pushed["cid"]).out)
    assert again == {"file": str(file), "blocks": again["blocks"], "bytes": file.stat().st_size, "left_out": 0}
    done = ipfs_store(*other, "import", file)
    assert (done.status, done.text) == (0, pushed["cid"])
    assert done.err.splitlines()[-1].startswith(f"imported {NAME}: ")
    assert f"({file.stat().st_size / 1000:.1f} KB)" in done.err.splitlines()[0]
    value = json.loads(ipfs_store(*other, "import", "--json", "--name", "mine:2", file).out)
    assert value["images"] == [{"cid": pushed["cid"], "name": "docker.io/library/mine:2"}]
    assert (value["blocks"], value["new_blocks"]) == (again["blocks"], 0)
    assert json.loads(ipfs_store(*other, "gc", "--json").out)["blocks"] == 0
    assert ipfs_store(*other, "cat", pushed["layers"][0]["cid"]).out == ipfs_store("cat", pushed["layers"][0]["cid"]).out


def test_an_image_travels_through_a_pipe(ipfs_store: Run, archive: Path, machine: Path) -> None:
    cid = ipfs_store("ipfs-push", "-q", archive).text
    exporting = start("export", "-q", cid, stderr=subprocess.DEVNULL)
    importing = start("--node-path", machine / "other", "import", "-q", "-", stdin=exporting.stdout)
    assert exporting.stdout is not None
    exporting.stdout.close()
    out, err = importing.communicate(timeout=PATIENCE)
    assert (importing.returncode, out.decode().strip(), err) == (0, cid, b"")
    assert exporting.wait(PATIENCE) == 0


def test_a_file_appears_when_it_is_whole(ipfs_store: Run, archive: Path, machine: Path) -> None:
    pushed = json.loads(ipfs_store("ipfs-push", "--json", archive).out)
    folder = machine / "out"
    folder.mkdir()
    layer = pushed["layers"][0]["cid"]
    lose(machine / "node", parse_cid(layer))
    done = ipfs_store("export", "-q", "-o", folder / "image.car", pushed["cid"])
    assert (done.status, done.out) == (1, b"")
    assert layer in done.err
    assert list(folder.iterdir()) == []


def test_what_is_no_car_is_one_line(ipfs_store: Run, archive: Path, machine: Path) -> None:
    done = ipfs_store("import", "-q", archive)
    assert (done.status, done.out) == (1, b"")
    assert "not a CAR" in done.err
    assert len(done.err.splitlines()) <= 2
    assert "no-file" in ipfs_store("import", machine / "no-file").err
    assert ipfs_store("pin", "ls").out == b""


def test_a_car_is_not_written_to_a_terminal(ipfs_store: Run, archive: Path) -> None:
    cid = ipfs_store("ipfs-push", "-q", archive).text
    ours, theirs = pty.openpty()
    process = start("export", cid, stdout=theirs)
    os.close(theirs)
    _, err = process.communicate(timeout=PATIENCE)
    os.close(ours)
    assert process.returncode == 2
    assert b"name a file with -o" in err


def test_an_import_that_is_killed_can_be_repeated(ipfs_store: Run, archive: Path, machine: Path) -> None:
    cid = ipfs_store("ipfs-push", "-q", archive).text
    file = machine / "image.car"
    ipfs_store("export", "-q", "-o", file, cid)
    other = ("--node-path", machine / "other")
    importing = start(*other, "import", "-q", "-", stdin=subprocess.PIPE)
    assert importing.stdin is not None
    importing.stdin.write(file.read_bytes()[:-1000])
    importing.stdin.flush()
    importing.send_signal(signal.SIGKILL)
    importing.communicate(timeout=PATIENCE)
    assert ipfs_store(*other, "pin", "ls").out == b""
    assert ipfs_store(*other, "import", "-q", file).text == cid
    assert ipfs_store(*other, "pin", "ls").text.count(cid) == 1


def test_names_that_nobody_has(ipfs_store: Run, archive: Path, machine: Path) -> None:
    done = ipfs_store("export", "-o", machine / "image.car", "thing:9")
    assert (done.status, done.out) == (1, b"")
    assert "neither a CID nor the name of a pin" in done.err
    one, two = (ipfs_store("ipfs-push", "-q", "--name", "same", *options, archive).text for options in ((), ("--chunk-size", "64KiB")))
    done = ipfs_store("export", "-o", machine / "image.car", "same")
    assert done.status == 1
    assert "2 images are called 'same'" in done.err
    assert one in done.err
    assert two in done.err


@pytest.mark.root
def test_a_full_disk_is_one_line_and_leaves_nothing(ipfs_store: Run, machine: Path, small_disk: Path) -> None:
    made = MadeImage([tar({"noise": os.urandom(3 << 20)})])
    cid = ipfs_store("ipfs-push", "-q", write_tar(machine / "noise.tar", layout_files([made.descriptor()], made.blobs))).text
    done = ipfs_store("export", "-q", "-o", small_disk / "image.car", cid)
    assert (done.status, done.out) == (1, b"")
    assert "No space left on device" in done.err
    assert list(small_disk.iterdir()) == []
    assert ipfs_store("export", "-q", "-o", machine / "image.car", cid).status == 0
    there = ("--node-path", small_disk / "node")
    done = ipfs_store(*there, "import", "-q", machine / "image.car")
    assert (done.status, done.out) == (1, b"")
    assert "No space left on device" in done.err
    assert len(done.err.splitlines()) <= 2
    assert ipfs_store(*there, "pin", "ls").out == b""


def test_a_reader_that_leaves_is_no_error(ipfs_store: Run, archive: Path) -> None:
    cid = ipfs_store("ipfs-push", "-q", archive).text
    ours, theirs = os.pipe()
    os.close(ours)
    process = start("export", "-q", cid, stdout=theirs)
    os.close(theirs)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (141, b"")
