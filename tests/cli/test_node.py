"""Looking at a node and what it holds, serving it, and fetching from one that serves."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ipfs_store.cids import RAW, cid_of, format_cid
from tests.cli.conftest import COMMAND, NAME, Done, start
from tests.patience import PATIENCE
from tests.sources.made import MadeImage

Run = Callable[..., Done]
NOWHERE = format_cid(cid_of(RAW, b"nowhere"))


@contextmanager
def serving(node: Path) -> Iterator[str]:
    """``ipfs-store serve`` of the node at ``node``; gives its URL."""
    process = start("--node-path", node, "serve", "--listen", "127.0.0.1:0")
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline().decode()
        assert line.startswith("serving embedded/blocks on http://127.0.0.1:"), process.stderr.read().decode()
        yield line.split()[-1]
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err.strip()) == (130, b"", b"")


def test_a_server_that_a_shell_put_in_the_background_ends_on_sigterm_alone(machine: Path) -> None:
    command = shlex.join([*COMMAND, "--node-path", str(machine / "node"), "serve", "--listen", "127.0.0.1:0"])
    process = subprocess.Popen(["sh", "-c", f"trap '' INT; exec {command}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"serving embedded/blocks on ")
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err.strip()) == (143, b"")


def test_an_image_goes_from_one_node_to_another(ipfs_store: Run, archive: Path, machine: Path) -> None:
    pushed = json.loads(ipfs_store("ipfs-push", "--json", archive).out)
    other = ("--node-path", machine / "other")
    with serving(machine / "node") as url:
        done = ipfs_store(*other, "--peer", url, "pin", "add", "--name", "kept", pushed["root"])
        assert (done.status, done.text) == (0, pushed["root"])
    layer = pushed["layers"][0]["cid"]
    assert ipfs_store(*other, "cat", layer).out == ipfs_store("cat", layer).out
    assert ipfs_store(*other, "pin", "ls").text == f"{pushed['root']}  kept"


def test_what_nothing_pins_is_collected(ipfs_store: Run, archive: Path) -> None:
    pushed = json.loads(ipfs_store("ipfs-push", "--json", archive).out)
    pins = json.loads(ipfs_store("pin", "ls", "--json").out)
    assert {pin["cid"]: pin["name"] for pin in pins} == {pushed["cid"]: NAME, pushed["root"]: ""}
    assert json.loads(ipfs_store("gc", "--json").out) == {"blocks": 0, "bytes": 0}
    before = json.loads(ipfs_store("node", "--json").out)
    assert (before["node"], before["pins"]) == ("embedded", 2)
    assert ipfs_store("pin", "rm", pushed["cid"], f"ipfs://{pushed['root']}").text == f"{pushed['cid']}\n{pushed['root']}"
    assert json.loads(ipfs_store("gc", "--json").out) == {"blocks": before["blocks"], "bytes": before["bytes"]}
    assert ipfs_store("gc").text == "freed 0 B in 0 blocks"
    assert ipfs_store("pin", "rm", pushed["root"]).status == 1


def test_the_node_is_described(ipfs_store: Run, machine: Path) -> None:
    done = ipfs_store("--peer", "http://10.0.0.1:1", "node")
    assert [line.split(maxsplit=1) for line in done.text.splitlines()] == [
        ["node", "embedded"],
        ["path", str(machine / "node")],
        ["blocks", "0"],
        ["bytes", "0 B"],
        ["packs", "0"],
        ["disk", "0 B"],
        ["pins", "0"],
        ["peers", "http://10.0.0.1:1"],
    ]


def test_parts_of_a_file(ipfs_store: Run, archive: Path, made: MadeImage) -> None:
    layer = json.loads(ipfs_store("ipfs-push", "--estargz=false", "--json", archive).out)["layers"][0]["cid"]
    whole = made.compressed[0]
    assert ipfs_store("cat", "--offset", 100, "--length", 50, layer).out == whole[100:150]
    assert ipfs_store("cat", "--offset", "1KiB", layer).out == whole[1024:]
    assert ipfs_store("cat", "--offset", len(whole), "--length", 9, layer).out == b""
    assert ipfs_store("cat", "--length", 0, layer).out == b""
    done = ipfs_store("cat", "--offset", len(whole) + 1, layer)
    assert (done.status, done.out) == (1, b"")
    assert "behind the end" in done.err


def test_a_file_appears_when_it_is_whole(ipfs_store: Run, archive: Path, machine: Path) -> None:
    cid = ipfs_store("ipfs-push", "-q", archive).text
    folder = machine / "out"
    folder.mkdir()
    target = folder / "file"
    assert ipfs_store("cat", "-o", target, NOWHERE).status == 1
    assert list(folder.iterdir()) == []
    target.write_text("before")
    target.chmod(0o640)
    assert ipfs_store("cat", "-o", target, NOWHERE).status == 1
    assert target.read_text() == "before"
    assert ipfs_store("cat", "-o", target, cid).status == 0
    assert target.read_bytes() == ipfs_store("cat", cid).out
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert list(folder.iterdir()) == [target]
    assert ipfs_store("cat", "-o", "/dev/null", cid).status == 0
    assert not os.path.isfile("/dev/null")
    done = ipfs_store("cat", "-o", machine / "missing/file", cid)
    assert done.status == 1
    assert "No such file or directory" in done.err


def test_a_cid_that_nobody_has(ipfs_store: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for arguments in (
            ("--peer", url, "--timeout", "0.3", "cat", NOWHERE),
            ("--peer", url, "cat", "--timeout", "0.3", NOWHERE),
            ("--peer", url, "pin", "add", "--timeout", "0.3", NOWHERE),
            ("--peer", url, "get-toc-digest", "--timeout", "0.3", NOWHERE),
        ):
            done = ipfs_store(*arguments)
            assert (done.status, done.out) == (1, b"")
            assert f"{NOWHERE} was not found within 0.3 s" in done.err
            assert len(done.err.splitlines()) == 2


def test_a_reader_that_leaves_is_no_error(ipfs_store: Run, archive: Path) -> None:
    layer = json.loads(ipfs_store("ipfs-push", "--estargz=false", "--chunk-size", "64KiB", "--json", archive).out)["layers"][0]["cid"]
    ours, theirs = os.pipe()
    os.close(ours)
    process = start("cat", layer, stdout=theirs)
    os.close(theirs)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (141, b"")


def test_an_address_in_use_is_told(ipfs_store: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = ipfs_store("serve", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert done.status == 1
    assert "Address already in use" in done.err
    assert len(done.err.splitlines()) == 2


@pytest.mark.parametrize("content", [b"", b"hello", bytes(100_000)])
def test_a_layer_without_a_toc_is_told(content: bytes, ipfs_store: Run, machine: Path) -> None:
    file = machine / "layer"
    file.write_bytes(content)
    done = ipfs_store("get-toc-digest", file)
    assert (done.status, done.out) == (1, b"")
    assert "has no footer" in done.err
