"""ipfs-store ipfs-push: what it prints and what it leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ipfs_store.cids import format_cid
from ipfs_store.dag.builder import FileBuilder
from ipfs_store.dag.chunker import fixed_leaves
from tests.cli.conftest import NAME, Done, shown_on_a_terminal, start
from tests.patience import PATIENCE
from tests.sources.made import MadeImage, docker_files, encode, image, layout_files, sha256, tar, write_folder, write_tar

Run = Callable[..., Done]
TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"


def test_only_the_cid_is_on_standard_output(ipfs_store: Run, archive: Path) -> None:
    done = ipfs_store("ipfs-push", archive)
    assert done.status == 0
    assert re.fullmatch(rb"bafkrei[a-z2-7]{52}\n", done.out)
    assert re.search(r"^converting sha256:[0-9a-f]{12} \([0-9.]+ [KM]?B\)$", done.err, re.MULTILINE)
    assert re.search(r"^pushing sha256:[0-9a-f]{12}: done in \d+\.\d s", done.err, re.MULTILINE)
    assert f"pushed {NAME}: " in done.err.splitlines()[-1]
    quiet = ipfs_store("ipfs-push", "--quiet", archive)
    assert (quiet.out, quiet.err) == (done.out, "")


def test_the_result_as_json(ipfs_store: Run, archive: Path) -> None:
    first, second = (json.loads(ipfs_store("ipfs-push", "--json", archive).out) for _ in range(2))
    assert set(first) == {"cid", "root", "descriptor", "name", "bytes", "new_blocks", "new_bytes", "seconds", "layers", "referrers"}
    assert first["name"] == NAME
    assert first["new_blocks"] > 0
    assert set(first["seconds"]) == {"convert", "push"}
    assert [set(layer) for layer in first["layers"]] == [{"digest", "cid", "size", "converted", "lazy"}] * 2
    assert all(layer["converted"] for layer in first["layers"])
    assert (second["new_blocks"], second["new_bytes"]) == (0, 0)
    for key in ("cid", "root", "descriptor", "layers", "bytes"):
        assert second[key] == first[key]
    descriptor = json.loads(ipfs_store("cat", first["cid"]).out)
    assert descriptor == first["descriptor"]
    assert descriptor["annotations"]["io.containerd.image.name"] == NAME


def test_every_source_of_the_same_image_gives_the_same_layers(ipfs_store: Run, archive: Path, made: MadeImage, machine: Path) -> None:
    docker = write_tar(machine / "docker.tar", docker_files((made, ["thing:1"])))
    folder = write_folder(machine / "layout", layout_files([made.descriptor()], made.blobs))
    found = [json.loads(ipfs_store("ipfs-push", "--json", source).out) for source in (archive, docker, f"oci:{folder}")]
    assert found[0]["layers"] == found[1]["layers"] == found[2]["layers"]
    assert [item["name"] for item in found] == [NAME, NAME, ""]


@pytest.mark.parametrize("switch", ["--estargz=false", "--no-estargz"])
def test_layers_can_be_left_alone(switch: str, ipfs_store: Run, archive: Path, made: MadeImage) -> None:
    pushed = json.loads(ipfs_store("ipfs-push", switch, "--json", archive).out)
    assert [layer["digest"] for layer in pushed["layers"]] == [f"sha256:{sha256(layer)}" for layer in made.compressed]
    assert not any(layer["converted"] for layer in pushed["layers"])
    assert ipfs_store("cat", pushed["layers"][0]["cid"]).out == made.compressed[0]


def test_a_fixed_chunker_gives_the_cids_of_ipfs_add(ipfs_store: Run, archive: Path, made: MadeImage) -> None:
    pushed = json.loads(ipfs_store("ipfs-push", "--no-estargz", "--chunker=size-1000", "--json", archive).out)
    builder = FileBuilder()
    for leaf in fixed_leaves(memoryview(made.compressed[0]), 1000):
        list(builder.add(bytes(leaf)))
    list(builder.finish())
    assert builder.root is not None
    assert pushed["layers"][0]["cid"] == format_cid(builder.root)


def test_a_chunker_that_is_none_is_named(ipfs_store: Run, archive: Path) -> None:
    done = ipfs_store("ipfs-push", "--quiet", "--chunker=rabin", archive)
    assert (done.status, done.out) == (1, b"")
    assert done.err.splitlines()[0] == "ipfs-store: error: 'rabin' is no chunker"
    assert "member-BYTES" in done.err


def test_pushed_again_nothing_is_converted(ipfs_store: Run, archive: Path, machine: Path) -> None:
    first = ipfs_store("ipfs-push", archive)
    second = ipfs_store("ipfs-push", archive)
    assert second.out == first.out
    assert "converting" in first.err
    assert "converting" not in second.err
    elsewhere = ipfs_store("--node-path", machine / "another", "ipfs-push", archive)
    assert elsewhere.out == first.out
    assert "converting" in elsewhere.err, "another node has none of it"


def test_toc_digests_agree(ipfs_store: Run, archive: Path, machine: Path) -> None:
    pushed = json.loads(ipfs_store("ipfs-push", "--json", archive).out)
    manifest = json.loads(ipfs_store("cat", pushed["descriptor"]["urls"][0]).out)
    for layer, descriptor in zip(pushed["layers"], manifest["layers"], strict=True):
        file = machine / "layer"
        assert ipfs_store("cat", "-o", file, layer["cid"]).status == 0
        assert sha256(file.read_bytes()) == descriptor["digest"].removeprefix("sha256:")
        for where in (file, layer["cid"], f"ipfs://{layer['cid']}"):
            assert ipfs_store("get-toc-digest", where).text == descriptor["annotations"][TOC_DIGEST]


def test_smaller_chunks_are_more(ipfs_store: Run, archive: Path) -> None:
    usual, small = (json.loads(ipfs_store("ipfs-push", "--json", *options, archive).out) for options in ((), ("--chunk-size", "64KiB")))
    assert usual["layers"][0]["cid"] != small["layers"][0]["cid"]
    assert usual["layers"][1] == small["layers"][1]


def test_a_name_of_ones_own(ipfs_store: Run, archive: Path) -> None:
    pushed = json.loads(ipfs_store("ipfs-push", "--json", "--name", "mine:2", archive).out)
    assert pushed["name"] == "docker.io/library/mine:2"
    assert pushed["descriptor"]["annotations"]["org.opencontainers.image.ref.name"] == "docker.io/library/mine:2"


def test_platforms_are_chosen(ipfs_store: Run, machine: Path) -> None:
    images = {name: image(name, architecture=name) for name in ("amd64", "arm64", "s390x")}
    entries = [made.descriptor(platform={"os": "linux", "architecture": name}) for name, made in images.items()]
    source = write_tar(machine / "all.tar", layout_files(entries, [blob for made in images.values() for blob in made.blobs]))

    def layers(*options: str) -> int:
        return len(json.loads(ipfs_store("ipfs-push", "--json", *options, source).out)["layers"])

    assert layers("--platform", "linux/arm64") == 1
    assert layers("--platform", "arm64", "--platform", "linux/s390x") == 2
    assert layers("--all-platforms") == 3
    done = ipfs_store("ipfs-push", "--platform", "linux/riscv64", source)
    assert (done.status, done.out) == (1, b"")
    assert "its platforms: linux/amd64, linux/arm64, linux/s390x" in done.err
    assert ipfs_store("ipfs-push", "--platform", "linux/arm64", "--all-platforms", source).status == 2


def test_a_terminal_shows_bars(archive: Path) -> None:
    status, out, shown = shown_on_a_terminal("ipfs-push", archive)
    assert status == 0
    assert out.startswith(b"bafkrei")
    assert "━".encode() in shown
    assert b"pushing" in shown


def test_a_damaged_layer_is_told_and_nothing_is_pinned(ipfs_store: Run, machine: Path, made: MadeImage) -> None:
    files = layout_files([made.descriptor()], made.blobs)
    files[f"blobs/sha256/{sha256(made.compressed[1])}"] = made.compressed[1][:-1] + b"x"
    done = ipfs_store("ipfs-push", "-q", write_tar(machine / "bad.tar", files))
    assert (done.status, done.out) == (1, b"")
    assert len(done.err.splitlines()) == 1
    assert f"blob sha256:{sha256(made.compressed[1])} is damaged" in done.err
    assert ipfs_store("pin", "ls").out == b""


def test_diff_ids_that_do_not_fit_are_told(ipfs_store: Run, machine: Path, made: MadeImage) -> None:
    files = docker_files((made, ["thing:1"]))
    listed = json.loads(files["manifest.json"])[0]
    config = json.loads(made.config)
    config["rootfs"]["diff_ids"].reverse()
    files |= {"other.json": encode(config), "manifest.json": encode([{**listed, "Config": "other.json"}])}
    done = ipfs_store("ipfs-push", "-q", write_tar(machine / "bad.tar", files))
    assert (done.status, done.out) == (1, b"")
    assert len(done.err.splitlines()) == 1


@pytest.mark.root
def test_a_full_disk_is_one_line(ipfs_store: Run, machine: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = MadeImage([tar({"noise": os.urandom(4 << 20)})])
    source = write_tar(machine / "noise.tar", layout_files([made.descriptor()], made.blobs))
    monkeypatch.setenv("TMPDIR", str(small_disk))
    done = ipfs_store("ipfs-push", "-q", source)
    assert (done.status, done.out) == (1, b"")
    assert "No space left on device" in done.err
    assert len(done.err.splitlines()) <= 2
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_push_that_is_interrupted_leaves_nothing(number: int, status: int, machine: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as registry:
        process = start("ipfs-push", f"127.0.0.1:{registry.getsockname()[1]}/thing")
        connection, _ = registry.accept()
        with connection:
            assert connection.recv(100).startswith(b"GET /v2/thing/manifests/latest")
            process.send_signal(number)
            out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err.strip()) == (status, b"", b"")


def test_digests_kept_after_a_push_that_kept_none(ipfs_store: Run, archive: Path, made: MadeImage) -> None:
    converted = json.loads(ipfs_store("ipfs-push", "--json", archive).out)
    done = ipfs_store("ipfs-push", "--preserve-digests", "--json", archive)
    kept = json.loads(done.out)
    assert "note: 2 of 2 layers have no table of contents" in done.err
    assert kept["descriptor"]["digest"] == f"sha256:{sha256(made.manifest)}"
    assert [layer["digest"] for layer in kept["layers"]] == [f"sha256:{sha256(layer)}" for layer in made.compressed]
    again = json.loads(ipfs_store("ipfs-push", "--json", archive).out)
    assert (again["cid"], again["layers"]) == (converted["cid"], converted["layers"])
    assert json.loads(ipfs_store("ipfs-push", "--preserve-digests", "--json", archive).out)["cid"] == kept["cid"]
