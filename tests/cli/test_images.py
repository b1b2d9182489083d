"""The life of an image on the command line: images, inspect, ls, cat, diff, verify, rm, pin."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ipfs_store.cids import parse_cid
from ipfs_store.cli.app import cli
from ipfs_store.nodes.blockstore import BlockStore
from tests.cli.conftest import NAME, Done
from tests.cli.test_node import serving
from tests.nodes.harm import damage, lose
from tests.sources.made import MadeImage, layout_files, named, tar, write_tar

Run = Callable[..., Done]


@pytest.fixture
def pushed(ipfs_store: Run, archive: Path) -> dict[str, Any]:
    return json.loads(ipfs_store("ipfs-push", "--json", archive).out)  # type: ignore[no-any-return]


@pytest.fixture
def newer(ipfs_store: Run, made: MadeImage, machine: Path) -> dict[str, Any]:
    """Another version of the image: its upper layer is another one."""
    image = MadeImage([made.layers[0], tar({"etc/second": b"changed", "etc/new": b"new"})])
    path = write_tar(machine / "newer.tar", layout_files([image.descriptor(**named("2", "docker.io/library/thing:2"))], image.blobs))
    return json.loads(ipfs_store("ipfs-push", "--json", path).out)  # type: ignore[no-any-return]


def test_images_are_listed(ipfs_store: Run, pushed: dict[str, Any], newer: dict[str, Any]) -> None:
    lines = ipfs_store("images").text.splitlines()
    assert [line.split()[:2] for line in lines] == [["NAME", "CID"], [NAME, pushed["cid"]], ["docker.io/library/thing:2", newer["cid"]]]
    assert len({len(line) for line in lines}) == 1
    found = json.loads(ipfs_store("images", "--json").out)
    assert [(item["name"], item["cid"], item["root"], item["lost"]) for item in found] == [
        (NAME, pushed["cid"], pushed["root"], ""),
        ("docker.io/library/thing:2", newer["cid"], newer["root"], ""),
    ]
    assert all(item["bytes"] == item["shared"] + item["unique"] and item["shared"] > 0 for item in found)
    assert ipfs_store("images", "-q").text.splitlines() == [pushed["cid"], newer["cid"]]


def test_a_node_without_images(ipfs_store: Run) -> None:
    assert ipfs_store("images").text.split() == ["NAME", "CID", "SIZE", "SHARED", "UNIQUE"]
    assert json.loads(ipfs_store("images", "--json").out) == []
    assert ipfs_store("images", "-q").out == b""


def test_an_image_is_removed(ipfs_store: Run, pushed: dict[str, Any], newer: dict[str, Any]) -> None:
    unique = json.loads(ipfs_store("images", "--json").out)[0]["unique"]
    done = ipfs_store("rm", "thing:1", "thing:9")
    assert (done.status, done.out) == (1, b"")
    assert len(json.loads(ipfs_store("images", "--json").out)) == 2
    removed = json.loads(ipfs_store("rm", "--gc", "--json", "thing:1").out)
    assert removed["removed"] == [pushed["cid"]]
    assert set(removed["unpinned"]) == {pushed["cid"], pushed["root"]}
    assert removed["bytes"] == unique
    assert [item["cid"] for item in json.loads(ipfs_store("images", "--json").out)] == [newer["cid"]]
    assert ipfs_store("rm", newer["root"]).text == newer["root"]
    assert ipfs_store("pin", "ls").out == b""
    assert ipfs_store("rm", "thing:2").status == 1


def test_a_pinned_image_is_a_whole_image(ipfs_store: Run, pushed: dict[str, Any], machine: Path) -> None:
    other = ("--node-path", machine / "other")
    with serving(machine / "node") as url:
        assert ipfs_store(*other, "--peer", url, "pin", "add", pushed["cid"]).text == pushed["cid"]
    assert json.loads(ipfs_store(*other, "images", "--json").out)[0]["name"] == NAME
    assert json.loads(ipfs_store(*other, "gc", "--json").out)["blocks"] == 0
    assert ipfs_store(*other, "verify", "-q", "thing:1").status == 0
    pins = [pushed["cid"], pushed["root"]]
    assert json.loads(ipfs_store(*other, "pin", "add", "--json", "thing:1").out) == {"cid": pushed["cid"], "pins": pins}
    removed = json.loads(ipfs_store(*other, "pin", "rm", "--json", "thing:1").out)
    assert (removed["cid"], sorted(removed["pins"])) == (pushed["cid"], sorted(pins))
    assert ipfs_store(*other, "pin", "ls").out == b""


def test_files_of_an_image_on_another_machine(ipfs_store: Run, machine: Path) -> None:
    image = MadeImage([tar({"big": os.urandom(2 << 20), "etc/hello": b"hello"}), tar({"etc/second": b"second"})])
    path = write_tar(machine / "noise.tar", layout_files([image.descriptor()], image.blobs))
    pushed = json.loads(ipfs_store("ipfs-push", "--json", path).out)
    other = ("--node-path", machine / "other")
    with serving(machine / "node") as url:
        there = (*other, "--peer", url)
        assert ipfs_store(*there, "ls", pushed["cid"]).text.splitlines() == ["big", "etc"]
        assert ipfs_store(*there, "ls", pushed["root"], "/etc").text.splitlines() == ["hello", "second"]
        assert ipfs_store(*there, "cat", pushed["cid"], "/etc/hello").out == b"hello"
        found = json.loads(ipfs_store(*there, "inspect", "--json", pushed["cid"]).out)
    assert 0 < found["here_bytes"] < found["bytes"]
    assert found["pull"]["whole"] == found["bytes"] - found["here_bytes"] > 1 << 20
    assert ipfs_store(*other, "images", "-q").out == b""


def test_files_are_listed(ipfs_store: Run, pushed: dict[str, Any]) -> None:
    assert ipfs_store("ls", "-R", "thing:1").text.splitlines() == ["/big", "/etc", "/etc/hello", "/etc/second"]
    assert ipfs_store("ls", "-d", "thing:1", "etc").text == "/etc"
    assert ipfs_store("ls", "-l", "thing:1", "/big").text.split() == ["-rw-r--r--", "0", "0", "768000", "1970-01-01", "00:00", "/big"]
    found = json.loads(ipfs_store("ls", "--json", "thing:1", "/etc").out)
    assert [(item["path"], item["type"], item["mode"], item["size"], item["layer"]) for item in found] == [
        ("/etc/hello", "reg", "0644", 5, 0),
        ("/etc/second", "reg", "0644", 6, 1),
    ]
    done = ipfs_store("ls", "thing:1", "/etc/nothing")
    assert (done.status, done.out, done.err) == (1, b"", "ipfs-store: error: the image has no /etc/nothing\n")
    done = ipfs_store("ls", pushed["layers"][0]["cid"])
    assert (done.status, done.out) == (1, b"")
    assert "not an image" in done.err


def test_parts_of_a_file_of_an_image(ipfs_store: Run, pushed: dict[str, Any], machine: Path) -> None:
    big = bytes(range(256)) * 3000
    assert ipfs_store("cat", "thing:1", "big").out == big
    assert ipfs_store("cat", "--offset", "500KiB", "--length", 1000, "thing:1", "big").out == big[512000:513000]
    assert ipfs_store("cat", "-o", machine / "big", "thing:1", "big").status == 0
    assert (machine / "big").read_bytes() == big
    for path, told in (("etc", "no regular file but a directory"), ("nothing", "no /nothing")):
        done = ipfs_store("cat", "-o", machine / "out", "thing:1", path)
        assert (done.status, done.out) == (1, b"")
        assert told in done.err
        assert not (machine / "out").exists()


def test_layers_that_are_not_lazy_can_be_looked_into_as_well(ipfs_store: Run, archive: Path) -> None:
    cid = ipfs_store("ipfs-push", "-q", "--estargz=false", archive).text
    assert ipfs_store("ls", "-R", cid).text.splitlines() == ["/big", "/etc", "/etc/hello", "/etc/second"]
    assert ipfs_store("cat", cid, "/etc/second").out == b"second"
    layers = json.loads(ipfs_store("inspect", "--json", cid).out)["manifests"][0]["layers"]
    assert [(layer["format"], layer["lazy"]) for layer in layers] == [("tar+gzip", False)] * 2


def test_an_image_is_inspected(ipfs_store: Run, pushed: dict[str, Any], newer: dict[str, Any]) -> None:
    shown = ipfs_store("inspect", "thing:1").text
    for part in (
        NAME,
        pushed["cid"],
        pushed["root"],
        pushed["descriptor"]["digest"],
        "linux/amd64",
        *(layer["cid"] for layer in pushed["layers"]),
    ):
        assert part in shown
    assert "estargz" in shown
    assert "a lazy pull fetches 0 B at once, 0 B in the end" in shown
    found = json.loads(ipfs_store("inspect", "--json", "thing:1").out)
    assert found["name"] == NAME
    assert [layer["cid"] for layer in found["manifests"][0]["layers"]] == [layer["cid"] for layer in pushed["layers"]]
    assert found["shared"] > 0
    assert found["pull"] == {"lazy": 0, "whole": 0}


def test_images_are_compared(ipfs_store: Run, pushed: dict[str, Any], newer: dict[str, Any]) -> None:
    lines = ipfs_store("diff", "thing:1", newer["cid"]).text.splitlines()
    assert lines[:2] == ["A /etc/new", "M /etc/second"]
    assert lines[2] == "1 added, 0 removed, 1 changed, 0 with other attributes; 10 B of contents are new"
    assert lines[3].startswith("to fetch: ")
    assert len(ipfs_store("diff", "--stat", "thing:2", "thing:1").text.splitlines()) == 2
    found = json.loads(ipfs_store("diff", "--json", "thing:1", "thing:2").out)
    assert found["changes"][0] == {"path": "/etc/new", "kind": "added", "before": None, "after": 3}
    assert 0 < found["transfer"]["bytes"] < found["transfer"]["total_bytes"]


def test_a_damaged_image_is_found_out(ipfs_store: Run, pushed: dict[str, Any], machine: Path) -> None:
    sound = ipfs_store("verify", "thing:1")
    assert sound.status == 0
    assert sound.text.startswith("all is as it should be: ")
    assert json.loads(ipfs_store("verify", "--json", "-q", pushed["root"]).out)["problems"] == []
    damage(machine / "node", parse_cid(pushed["layers"][1]["cid"]))
    done = ipfs_store("verify", "-q", "thing:1")
    assert done.status == 1
    assert done.text.startswith(pushed["layers"][1]["cid"])
    assert done.err.splitlines()[-1].startswith("1 problems: ")
    found = json.loads(ipfs_store("verify", "--json", "-q", "thing:1").out)
    assert [problem["what"] for problem in found["problems"]] == [pushed["layers"][1]["cid"]]


def test_a_damaged_block_is_fetched_again(ipfs_store: Run, pushed: dict[str, Any], machine: Path) -> None:
    with serving(machine / "node") as url:
        there = ("--node-path", machine / "other", "--peer", url)
        assert ipfs_store(*there, "pin", "add", pushed["cid"]).status == 0
        layer = parse_cid(pushed["layers"][1]["cid"])
        lose(machine / "other", layer)
        assert ipfs_store(*there, "verify", "-q", "thing:1").status == 0
        store = BlockStore(machine / "other")
        assert store.has(layer)
        store.close()


def test_names_are_completed(ipfs_store: Run, pushed: dict[str, Any], newer: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_IPFS_STORE_COMPLETE", "bash_complete")
    for words, found in (
        ("ipfs-store rm docker.io/lib", [NAME, "docker.io/library/thing:2"]),
        ("ipfs-store diff x docker.io/library/thing:2", ["docker.io/library/thing:2"]),
        ("ipfs-store inspect nothing", []),
        ("ipfs-store --node kubo:127.0.0.1:1 cat d", []),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        shown = CliRunner().invoke(cli, [], prog_name="ipfs-store")
        assert [line.removeprefix("plain,") for line in shown.output.split()] == found
