"""ipfs-store convert: what it prints, what it reuses, and what is left when it is stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipfs_store.images.targets import detect
from tests.cli.conftest import NAME, Done, shown_on_a_terminal, start
from tests.patience import PATIENCE
from tests.requirements import require_root
from tests.sources.made import MadeImage, described, docker_files, encode, image, layout_files, sha256, tar, write_tar
from tests.sources.registries import docker_registry

Run = Callable[..., Done]
TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"


def manifest_in(archive: Path) -> dict[str, object]:
    with tarfile.open(archive) as opened:

        def read(name: str) -> bytes:
            file = opened.extractfile(name)
            assert file is not None
            return file.read()

        entry = json.loads(read("index.json"))["manifests"][0]
        found: dict[str, object] = json.loads(read(f"blobs/sha256/{entry['digest'].removeprefix('sha256:')}"))
        return found


def test_the_digest_of_the_result_is_on_standard_output(ipfs_store: Run, archive: Path, machine: Path) -> None:
    done = ipfs_store("convert", "--estargz", archive, machine / "new.tar")
    assert done.status == 0
    assert re.fullmatch(rb"sha256:[0-9a-f]{64}\n", done.out)
    assert re.search(r"^converting sha256:[0-9a-f]{12} \([0-9.]+ [KM]?B\)$", done.err, re.MULTILINE)
    assert f"wrote {NAME}: 2 of 2 layers converted, " in done.err.splitlines()[-1]
    quiet = ipfs_store("convert", "--quiet", "--estargz", archive, machine / "again.tar")
    assert (quiet.out, quiet.err) == (done.out, "")
    assert (machine / "again.tar").read_bytes() == (machine / "new.tar").read_bytes()


def test_a_terminal_shows_rate_and_time_left(archive: Path, machine: Path) -> None:
    status, out, shown = shown_on_a_terminal("convert", "--estargz", archive, machine / "new.tar")
    assert status == 0
    assert out.startswith(b"sha256:")
    assert b"converting all layers" in shown
    assert re.search(rb"B/s", shown)
    assert re.search(rb"\d:\d\d:\d\d", shown)


def test_what_the_documentation_shows(ipfs_store: Run, archive: Path, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs/convert.md").read_text()
    commands = re.findall(r"^# ipfs-store (.+?)(?:  +#.*)?$", text, re.MULTILINE)
    assert len(commands) == 5
    monkeypatch.chdir(machine)
    with docker_registry(machine / "registry") as host:
        for command in commands:
            done = ipfs_store(*command.replace("localhost:5000", host).split())
            assert done.status == 0, (command, done.err)
    assert len(done.text.split()) == 2


def test_the_result_as_json(ipfs_store: Run, archive: Path, machine: Path, made: MadeImage) -> None:
    found = json.loads(ipfs_store("convert", "--estargz", "--json", archive, f"oci:{machine / 'layout'}:one").out)
    assert found["names"] == ["one"]
    assert [layer["source"] for layer in found["layers"]] == [f"sha256:{sha256(layer)}" for layer in made.compressed]
    assert all(layer["converted"] and TOC_DIGEST in layer["annotations"] for layer in found["layers"])
    blobs = machine / "layout/blobs/sha256"
    assert {blob.name for blob in blobs.iterdir()} >= {layer["digest"].removeprefix("sha256:") for layer in found["layers"]}
    assert all(sha256(blob.read_bytes()) == blob.name for blob in blobs.iterdir())


def test_layers_that_are_right_stay_byte_for_byte(ipfs_store: Run, archive: Path, machine: Path) -> None:
    first = json.loads(ipfs_store("convert", "--estargz", "--json", archive, machine / "first.tar").out)
    again = json.loads(ipfs_store("convert", "--estargz", "--json", machine / "first.tar", machine / "second.tar").out)
    assert again["digest"] == first["digest"]
    assert not any(layer["converted"] for layer in again["layers"])
    smaller = json.loads(
        ipfs_store("convert", "--estargz", "--estargz-chunk-size", "64KiB", "--json", machine / "first.tar", machine / "third.tar").out
    )
    assert all(layer["converted"] for layer in smaller["layers"])
    assert smaller["digest"] != first["digest"]


def test_annotations_that_an_archive_of_docker_lost_are_said_again(ipfs_store: Run, archive: Path, machine: Path) -> None:
    """`docker-archive:` is read by its manifest.json, in which layers are file names."""
    first = json.loads(ipfs_store("convert", "--estargz", "--json", archive, f"docker-archive:{machine / 'docker.tar'}").out)
    again = json.loads(ipfs_store("convert", "--estargz", "--json", f"docker-archive:{machine / 'docker.tar'}", machine / "new.tar").out)
    assert [layer["digest"] for layer in again["layers"]] == [layer["digest"] for layer in first["layers"]]
    assert not any(layer["converted"] for layer in again["layers"])
    assert [layer["annotations"][TOC_DIGEST] for layer in again["layers"]] == [
        layer["annotations"][TOC_DIGEST] for layer in first["layers"]
    ]


@pytest.mark.parametrize("format", ["estargz", "zstdchunked"])
def test_files_of_a_record_come_first(format: str, ipfs_store: Run, archive: Path, machine: Path) -> None:
    record = machine / "record.json"
    record.write_text('{"path":"etc/hello"}\n{"path":"not/there"}\n')
    new = machine / "new.tar"
    assert ipfs_store("convert", f"--{format}", f"--{format}-record-in", record, "--oci", archive, new).status == 0
    first = json.loads(ipfs_store("get-toc-digest", "--dump-toc", new).out.splitlines()[0])
    names = [entry["name"] for entry in first["entries"] if entry["type"] != "dir"]
    assert names[:3] == ["etc/hello", ".prefetch.landmark", "big"]


def test_options_of_ctr_remote_that_change_nothing_here(ipfs_store: Run, archive: Path, machine: Path) -> None:
    plain = ipfs_store("convert", "-q", "--estargz", archive, machine / "one.tar")
    given = ("--estargz-parallelism", "1", "--estargz-gzip-helper", "pigz", "--estargz-chunk-size", "0")
    assert ipfs_store("convert", "-q", "--estargz", *given, archive, machine / "two.tar").out == plain.out


def test_an_image_is_converted_in_place(ipfs_store: Run, archive: Path, machine: Path) -> None:
    expected = ipfs_store("convert", "-q", "--estargz", archive, machine / "new.tar").out
    assert ipfs_store("convert", "-q", "--estargz", archive, archive).out == expected
    assert archive.read_bytes() == (machine / "new.tar").read_bytes()


def docker_typed(machine: Path) -> tuple[Path, MadeImage]:
    made = MadeImage([tar({"etc/hello": b"hello"})])
    family = "application/vnd.docker"
    manifest = json.loads(made.manifest)
    manifest["mediaType"] = f"{family}.distribution.manifest.v2+json"
    manifest["config"]["mediaType"] = f"{family}.container.image.v1+json"
    manifest["layers"][0]["mediaType"] = f"{family}.image.rootfs.diff.tar.gzip"
    made.manifest = encode(manifest)
    entry = described(manifest["mediaType"], made.manifest)
    return write_tar(machine / "docker-types.tar", layout_files([entry], made.blobs)), made


def test_dockers_types_become_ocis_when_that_is_asked_for(ipfs_store: Run, machine: Path) -> None:
    source, _ = docker_typed(machine)
    kept, changed = machine / "kept.tar", machine / "changed.tar"
    assert ipfs_store("convert", "--estargz", source, kept).status == 0
    assert manifest_in(kept)["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert ipfs_store("convert", "--oci", source, changed).status == 0
    manifest = json.dumps(manifest_in(changed))
    assert "docker" not in manifest
    assert manifest.count("application/vnd.oci.image.") == 3


def test_a_copy_without_a_format_keeps_every_digest(ipfs_store: Run, archive: Path, machine: Path, made: MadeImage) -> None:
    done = ipfs_store("convert", "-q", archive, f"oci:{machine / 'layout'}:x")
    assert done.text == f"sha256:{sha256(made.manifest)}"


def test_history_and_what_the_config_says_stay(ipfs_store: Run, machine: Path) -> None:
    made = MadeImage([tar({"a": b"1"}), tar({"b": b"2"})])
    config = json.loads(made.config) | {
        "author": "me",
        "history": [{"created_by": "first"}, {"created_by": "nothing", "empty_layer": True}, {"created_by": "second"}],
        "variant": "v2",
    }
    made.config = encode(config)
    manifest = json.loads(made.manifest)
    manifest["config"] = described(manifest["config"]["mediaType"], made.config)
    made.manifest = encode(manifest)
    source = write_tar(machine / "history.tar", layout_files([made.descriptor()], made.blobs))
    assert ipfs_store("convert", "--estargz", source, f"oci:{machine / 'layout'}:x").status == 0
    new = json.loads((machine / "layout/index.json").read_bytes())["manifests"][0]
    blobs = machine / "layout/blobs/sha256"
    written = json.loads((blobs / new["digest"][7:]).read_bytes())
    after = json.loads((blobs / written["config"]["digest"][7:]).read_bytes())
    assert {key: value for key, value in after.items() if key != "rootfs"} == {k: v for k, v in config.items() if k != "rootfs"}
    assert len(after["rootfs"]["diff_ids"]) == 2
    for diff_id, layer in zip(after["rootfs"]["diff_ids"], written["layers"], strict=True):
        unpacked = subprocess.run(["gzip", "-dc", blobs / layer["digest"][7:]], capture_output=True, check=True).stdout
        assert diff_id == f"sha256:{sha256(unpacked)}"


def test_an_attestation_follows_the_manifest_that_it_is_about(ipfs_store: Run, machine: Path) -> None:
    made = image("x")
    statement = b'{"predicateType":"https://slsa.dev/provenance/v1"}'
    empty = b"{}"
    attestation = encode(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described("application/vnd.oci.image.config.v1+json", empty),
            "layers": [described("application/vnd.in-toto+json", statement)],
        }
    )
    about = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": f"sha256:{sha256(made.manifest)}"}
    unknown = {"os": "unknown", "architecture": "unknown"}
    entries = [
        made.descriptor(platform={"os": "linux", "architecture": "amd64"}),
        described("application/vnd.oci.image.manifest.v1+json", attestation, platform=unknown, annotations=about),
    ]
    source = write_tar(machine / "attested.tar", layout_files(entries, [*made.blobs, attestation, statement, empty]))
    assert ipfs_store("convert", "--estargz", "--all-platforms", source, f"oci:{machine / 'layout'}:x").status == 0
    blobs = machine / "layout/blobs/sha256"
    top = json.loads((machine / "layout/index.json").read_bytes())["manifests"][0]
    first, second = json.loads((blobs / top["digest"][7:]).read_bytes())["manifests"]
    assert first["digest"] != f"sha256:{sha256(made.manifest)}"
    assert second["annotations"]["vnd.docker.reference.digest"] == first["digest"]
    assert (blobs / second["digest"][7:]).read_bytes() == attestation


def test_out_of_ipfs_comes_what_went_in(ipfs_store: Run, archive: Path, machine: Path, made: MadeImage) -> None:
    cid = ipfs_store("ipfs-push", "-q", "--no-estargz", archive).text
    for text in (cid, f"ipfs://{cid}", f"/ipfs/{cid}"):
        target = machine / "out.tar"
        done = ipfs_store("convert", "-q", text, target)
        assert (done.err, done.status) == ("", 0)
        assert manifest_in(target) == json.loads(made.manifest)  # its bytes are those of our encoder, which Go's tools share
        assert b"ipfs" not in target.read_bytes()
        target.unlink()


def test_the_platforms_that_are_asked_for(ipfs_store: Run, machine: Path) -> None:
    images = {name: image(name, architecture=name) for name in ("amd64", "arm64", "s390x")}
    entries = [made.descriptor(platform={"os": "linux", "architecture": name}) for name, made in images.items()]
    source = write_tar(machine / "all.tar", layout_files(entries, [blob for made in images.values() for blob in made.blobs]))

    def layers(*options: str) -> int:
        return len(json.loads(ipfs_store("convert", "--estargz", "--json", *options, source, machine / "new.tar").out)["layers"])

    assert layers("--platform", "linux/arm64") == 1
    assert layers("--platform", "linux/arm64,linux/s390x") == 2
    assert layers("--all-platforms") == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--estargz", "--uncompress"), "exclude each other"),
        (("--estargz", "--zstdchunked"), "exclude each other"),
        (("--estargz", "--estargz-keep-diff-id"), "needs --estargz-external-toc"),
        (("--platform", "amd64", "--all-platforms"), "exclude each other"),
        (("--estargz", "--estargz-chunk-size", "1"), "4 KiB to 64 MiB"),
    ],
)
def test_what_does_not_go_together_is_a_mistake_of_usage(options: tuple[str, ...], told: str, ipfs_store: Run, archive: Path) -> None:
    done = ipfs_store("convert", *options, archive, "new.tar")
    assert (done.status, done.out) == (2, b"")
    assert told in done.err


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("new.tar.gz", "would be a compressed archive"),
        ("./new", "an archive or a layout?"),
        ("missing/new.tar", "no such folder"),
        ("oci:image.tar", "is no folder"),
        ("oci-archive:.", "is a folder"),
        ("oci:", "no target is named"),
        ("oci:full", "something else in it"),
        ("oci:broken", "not JSON"),
        ("example.com/app@sha256:" + "0" * 64, "names a digest"),
    ],
)
def test_a_target_that_is_none_is_one_line(
    target: str, told: str, ipfs_store: Run, archive: Path, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "full").mkdir()
    (machine / "full/file").write_text("x")
    (machine / "broken").mkdir()
    (machine / "broken/index.json").write_text("x")
    monkeypatch.chdir(machine)
    before = sorted(machine.rglob("*"))
    done = ipfs_store("convert", "-q", archive, target)
    assert (done.status, done.out) == (1, b"")
    assert told in done.err
    assert len(done.err.splitlines()) <= 2
    assert sorted(machine.rglob("*")) == before


def test_without_the_package_that_knows_containerd_nothing_goes_elsewhere(
    ipfs_store: Run, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect, "entry_points", lambda group: {})
    done = ipfs_store("convert", "-q", archive, "containerd:app:1")
    assert (done.status, done.out) == (1, b"")
    assert "nothing that is installed writes images to 'containerd'" in done.err


def test_an_archive_is_replaced_only_by_a_whole_one(ipfs_store: Run, archive: Path, machine: Path, made: MadeImage) -> None:
    target = machine / "new.tar"
    assert ipfs_store("convert", "-q", archive, target).status == 0
    before = target.read_bytes()
    files = layout_files([made.descriptor()], made.blobs)
    files[f"blobs/sha256/{sha256(made.compressed[1])}"] = made.compressed[1][:-1] + b"x"
    done = ipfs_store("convert", "-q", "--estargz", write_tar(machine / "bad.tar", files), target)
    assert (done.status, done.out) == (1, b"")
    assert f"blob sha256:{sha256(made.compressed[1])} is damaged" in done.err
    assert target.read_bytes() == before


def test_an_archive_goes_through_a_pipe(ipfs_store: Run, archive: Path, machine: Path) -> None:
    assert ipfs_store("convert", "-q", archive, machine / "new.tar").status == 0
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        assert cat.stdin is not None
        process = start("convert", "-q", archive, f"oci-archive:/proc/self/fd/{cat.stdin.fileno()}", pass_fds=(cat.stdin.fileno(),))
        process.communicate()
        cat.stdin.close()
        assert cat.stdout is not None
        assert cat.stdout.read() == (machine / "new.tar").read_bytes()


def test_docker_archives_name_what_docker_shows(ipfs_store: Run, archive: Path, machine: Path) -> None:
    assert ipfs_store("convert", archive, f"docker-archive:{machine / 'd.tar'}").status == 0
    with tarfile.open(machine / "d.tar") as opened:
        file = opened.extractfile("manifest.json")
        assert file is not None
        (listed,) = json.load(file)
        assert listed["RepoTags"] == ["thing:1"]
        assert all(name in opened.getnames() for name in (listed["Config"], *listed["Layers"]))


def test_every_source_gives_the_same_layers(ipfs_store: Run, archive: Path, machine: Path, made: MadeImage) -> None:
    docker = write_tar(machine / "docker.tar", docker_files((made, ["thing:1"])))
    found = [json.loads(ipfs_store("convert", "--estargz", "--json", source, machine / "new.tar").out) for source in (archive, docker)]
    assert [layer["digest"] for layer in found[0]["layers"]] == [layer["digest"] for layer in found[1]["layers"]]


@pytest.fixture
def small_disk(machine: Path) -> Iterator[Path]:
    """A folder on a disk of 1 MiB."""
    require_root()
    folder = machine / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.root
@pytest.mark.parametrize("target", ["oci-archive:{}/new.tar", "oci:{}/layout:x"])
def test_a_full_disk_is_one_line_and_leaves_nothing(target: str, ipfs_store: Run, machine: Path, small_disk: Path) -> None:
    made = MadeImage([tar({"noise": os.urandom(4 << 20)})])
    source = write_tar(machine / "noise.tar", layout_files([made.descriptor()], made.blobs))
    done = ipfs_store("convert", "-q", source, target.format(small_disk))
    assert (done.status, done.out) == (1, b"")
    assert "No space left on device" in done.err
    assert len(done.err.splitlines()) <= 2
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("target", ["new.tar", "oci:layout:x"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_conversion_that_is_stopped_leaves_no_image(number: int, status: int, target: str, machine: Path) -> None:
    made = MadeImage([tar({"a": b"1"})])
    with socket.create_server(("127.0.0.1", 0)) as registry:
        process = start("convert", f"127.0.0.1:{registry.getsockname()[1]}/thing", target, cwd=machine)
        serve_up_to_layers(registry, made)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (status, b"")
    assert b"error" not in err
    assert not (machine / "new.tar").exists()
    assert not (machine / "layout/index.json").exists()
    if number != signal.SIGKILL:
        assert not (machine / "layout").exists()


def serve_up_to_layers(registry: socket.socket, made: MadeImage) -> None:
    """Answers for manifest and config; returns when the layer is asked for."""
    while True:
        connection, _ = registry.accept()
        with connection, connection.makefile("rb") as requests:
            while line := requests.readline():
                while requests.readline().strip():
                    pass
                if sha256(made.compressed[0]).encode() in line:
                    return
                body = made.manifest if b"/manifests/" in line else made.config
                kind = "application/vnd.oci.image.manifest.v1+json"
                connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
