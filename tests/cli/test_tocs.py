"""ipfs-store get-toc-digest: files, images wherever they are, and tables that lie elsewhere."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ipfs_store.images.sources import distribution
from tests.cli.conftest import Done
from tests.sources.made import MadeImage, layout_files, sha256, tar, write_tar
from tests.sources.registries import docker_registry

Run = Callable[..., Done]
TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"


def converted(ipfs_store: Run, archive: Path, target: str, *options: str) -> list[str]:
    """The TOC digests of what was written."""
    done = ipfs_store("convert", "--json", *options, archive, target)
    assert done.status == 0, done.err
    return [layer["annotations"][TOC_DIGEST] for layer in json.loads(done.out)["layers"]]


@pytest.mark.parametrize("format", ["--estargz", "--zstdchunked"])
def test_every_source_has_the_same_tocs(format: str, ipfs_store: Run, archive: Path, machine: Path, tmp_path: Path) -> None:
    expected = converted(ipfs_store, archive, str(machine / "new.tar"), format)
    with docker_registry(tmp_path / "registry") as host:
        places = [str(machine / "new.tar"), f"oci:{machine / 'layout'}:app", f"docker-archive:{machine / 'docker.tar'}", f"{host}/app:1"]
        for place in places[1:]:
            assert converted(ipfs_store, archive, place, format) == expected
        places.append(ipfs_store("ipfs-push", "-q", machine / "new.tar").text)
        for place in places:
            done = ipfs_store("get-toc-digest", place)
            assert (done.err, done.text.split()) == ("", expected)


def test_only_tables_are_fetched_from_a_registry(ipfs_store: Run, machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = MadeImage([tar({"a": b"1"})])
    source = write_tar(machine / "made.tar", layout_files([made.descriptor()], made.blobs))
    with docker_registry(tmp_path / "registry") as host:
        expected = converted(ipfs_store, source, f"{host}/app:1", "--estargz")
        monkeypatch.setattr(distribution.Registry, "download", None)
        assert ipfs_store("get-toc-digest", f"{host}/app:1").text.split() == expected


@pytest.mark.parametrize("target", ["oci:{}/layout:app", "{registry}/app:1", "containerdless.tar"])
def test_a_table_in_an_image_of_its_own_is_found(
    target: str, ipfs_store: Run, archive: Path, machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(machine)
    with docker_registry(tmp_path / "registry") as host:
        place = target.format(machine, registry=host)
        expected = converted(ipfs_store, archive, place, "--estargz", "--estargz-external-toc")
        name = f"{place}:docker.io/library/thing:1" if place.endswith(".tar") else place  # an archive of two images now
        done = ipfs_store("get-toc-digest", name)
        assert (done.err, done.text.split()) == ("", expected)


def test_a_layer_without_a_table_is_a_dash(ipfs_store: Run, archive: Path) -> None:
    assert ipfs_store("get-toc-digest", archive).text.split() == ["-", "-"]


def test_a_file_that_is_no_lazy_layer_is_told(ipfs_store: Run, machine: Path) -> None:
    (machine / "plain.tar.gz").write_bytes(gzip.compress(tar({"a": b"1"})))
    done = ipfs_store("get-toc-digest", machine / "plain.tar.gz")
    assert (done.status, done.out) == (1, b"")
    assert "no footer" in done.err


def test_the_table_itself_has_that_digest(ipfs_store: Run, archive: Path, machine: Path) -> None:
    converted(ipfs_store, archive, str(machine / "new.tar"), "--estargz")
    digests = ipfs_store("get-toc-digest", machine / "new.tar").text.split()
    tables = ipfs_store("get-toc-digest", "--dump-toc", machine / "new.tar").out.splitlines()
    assert [f"sha256:{sha256(table)}" for table in tables] == digests
    assert json.loads(tables[0])["version"] == 1
