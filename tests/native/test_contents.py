"""Files of a native mount: who fetches what, and where it is found after."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ipfs_store.formats.footer import locate_toc
from ipfs_store.formats.names import stargz_footer
from snapshotter.dataplane.client import DataPlane, DataPlaneFailed
from tests.dataplane.conftest import impatient
from tests.native.conftest import Native, a_plane, noise, tar_of
from tests.native.hostile import Items, rewrite
from tests.patience import PATIENCE, until
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
    assert native.dataplane.status().layers[0].files_opened >= 1
    pid = native.dataplane.status().pid
    os.kill(pid, signal.SIGSTOP)
    try:
        subprocess.run(
            ["timeout", "-s", "KILL", f"{PATIENCE:g}", "cat", *(root / path for path in files)], check=True, stdout=subprocess.DEVNULL
        )
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


@pytest.mark.parametrize("size", [30_000, 3 << 20])
def test_leaves_on_the_disk_are_read_without_the_node_and_with_it_where_one_is_damaged(native: Native, size: int) -> None:
    files = {name: noise(name, size) for name in ("whole", "damaged")}
    root = native.root("one", files)
    blob = (native.folder / "one.blob").read_bytes()
    (native.folder / "one.local").write_bytes(blob)
    before = native.reads()
    assert (root / "whole").read_bytes() == files["whole"]
    assert native.reads() == before
    (native.folder / "one.local").write_bytes(bytes(byte ^ 1 for byte in blob))
    assert (root / "damaged").read_bytes() == files["damaged"]
    assert native.reads() > before
    for content in native.stored():
        assert (native.data[0] / content[:2] / content).read_bytes() in files.values()


def test_a_layer_whose_metadata_are_kept_is_mounted_without_its_source(native: Native, tmp_path: Path) -> None:
    digest = native.write("one", tar_of(tmp_path / "tar", {"a": b"text"}))
    native.image("one", digest)
    native.dataplane.unmount(1)
    before = native.reads()
    native.image("one", digest)
    assert native.reads() == before


def test_a_namespace_with_a_cache_of_its_own_gets_nothing_by_name(tmp_path: Path) -> None:
    with a_plane(cache_scope="namespace") as native:
        data = noise("same", 30_000)
        files = tar_of(tmp_path / "tar", {"file": data})
        one = native.overlay(native.image("one", native.write("one", files), namespace="a"))
        assert (one / "file").read_bytes() == data
        digest = native.write("two", files)
        again = native.overlay(native.image("two", digest, namespace="a"))
        other = native.overlay(native.image("three", native.write("three", files), namespace="b"))
        before = native.reads()
        assert (again / "file").read_bytes() == data
        assert native.reads() == before
        native.dataplane = impatient(native.dataplane)
        native.faults("missing")
        with pytest.raises(OSError, match="Input/output error"):
            (other / "file").read_bytes()


def test_the_next_source_is_tried_where_one_lies(native: Native) -> None:
    data = noise("same", 30_000)
    one = native.root("one", {"a": data})
    native.root("two", {"b": data, "c": b"other"})
    blob = native.folder / "one.blob"
    blob.write_bytes(bytes(byte ^ 1 for byte in blob.read_bytes()))
    assert (one / "a").read_bytes() == data
    assert "layer sha256:" in native.log()


def test_a_file_without_digests_is_read_and_shared_with_nobody(native: Native) -> None:
    def edit(items: Items) -> None:
        for item in items:
            item.pop("digest", None)
            item.pop("chunkDigest", None)

    roots = []
    for name in ("one", "two"):
        native.write(name, tar_of(native.folder / f"{name}.tar", {"small": noise("s", 500), "large": noise("l", 3 << 20)}))
        blob = native.folder / f"{name}.blob"
        rewrite(blob, edit)
        data = blob.read_bytes()
        offset = len(data) - 51
        toc = locate_toc(data[-100:], len(data), {}).offset
        blob.write_bytes(data[:offset] + stargz_footer(toc))
        roots.append(native.overlay(native.image(name)))
        # Nothing but the CIDs of its leaves vouches for such a file: what was not hashed is not believed.
        (native.folder / f"{name}.local").write_bytes(bytes(len(data)))
    for root in roots:
        assert (root / "small").read_bytes() == noise("s", 500)
        assert (root / "large").read_bytes() == noise("l", 3 << 20)
    assert len(native.stored()) >= 2


def test_a_full_cache_ends_no_read(tmp_path: Path) -> None:
    with a_plane(cache_reserve=1 << 60) as native:
        files = {f"f{number}": noise(str(number), 9000) for number in range(30)} | {"large": noise("large", 3 << 20)}
        root = native.root("one", files)
        for path, data in files.items():
            assert (root / path).read_bytes() == data
        assert not native.stored()
        assert native.log().count("the cache is full") == 1


def test_what_is_evicted_under_a_reader_is_read_all_the_same(tmp_path: Path) -> None:
    with a_plane(cache_max_bytes=1 << 20) as native:
        files = {f"f{number}": noise(str(number), 100_000) for number in range(60)}
        roots = [native.root(name, files) for name in ("one", "two")]
        for root in roots * 2:
            for path, data in files.items():
                assert (root / path).read_bytes() == data


def test_what_is_evicted_and_held_by_an_overlay_counts_until_it_is_let_go_of() -> None:
    with a_plane(cache_max_bytes=3 << 20) as native:
        held = noise("held", 1 << 20)
        root = native.root("one", {"held": held})
        others = tar_of(native.folder / "two.tar", {f"f{number}": noise(str(number), 500_000) for number in range(5)})
        native.image("two", native.write("two", others))
        number = native.numbers["two"]
        with (root / "held").open("rb") as file:
            (name,) = native.stored()
            while name in native.stored():  # it stays for a while after it was looked up
                with contextlib.suppress(DataPlaneFailed):  # it went between our two looks
                    native.dataplane.pin("two", [number])  # wants more room than there is beside it
            with pytest.raises(DataPlaneFailed, match="the cache can take 2,097,152"):
                native.dataplane.pin("two", [number])
            assert file.read() == held
        native.unmount_all()
        native.dataplane.pin("two", [number])
        until(lambda: native.status("two").pin_left == 0)


def test_a_cut_file_in_the_cache_is_found_after_an_unclean_boot(native: Native) -> None:
    root = native.root("one", {"a": noise("a", 5000), "b": noise("b", 5000)})
    assert (root / "a").read_bytes() + (root / "b").read_bytes() == noise("a", 5000) + noise("b", 5000)
    victim = sorted(native.data[0].glob("??/*"))[0]
    native.unmount_all()
    native.dataplane.stop()
    victim.chmod(0o644)
    victim.write_bytes(victim.read_bytes()[:100])
    os.utime(victim)  # as if it had been written after the last sync
    (native.folder / "cache/contents/synced").write_text("another-boot 1")
    native.dataplane.start()
    assert not victim.exists()
    assert "of the cache were hashed again" in native.log()
    root = native.overlay(native.image("one"))
    assert (root / "a").read_bytes() + (root / "b").read_bytes() == noise("a", 5000) + noise("b", 5000)


def test_a_chain_of_layers_is_one_image(native: Native, tmp_path: Path) -> None:
    make_input.main(str(tmp_path / "input.tar"))
    below = tar_of(
        tmp_path / "below.tar", {"var/gone": b"removed above", "var/opaque/old": b"hidden", "etc/hostname": b"old", "etc/x": b"x"}
    )
    layers = {"below": native.write("below", below), "input": native.write("input", tmp_path / "input.tar")}
    images = [native.image(name, digest) for name, digest in layers.items()]
    stacked = native.overlay(*reversed(images))
    merged = native.overlay(native.chain("below", "input"))
    # The root's time is that of the upper directory.
    assert [line for line in differences(look(stacked), look(merged)) if not line.startswith(".: mtime")] == []
    with pytest.raises(DataPlaneFailed, match="not mounted natively"):
        native.dataplane.mount_chain([77])


def test_metadata_of_layers_that_are_gone_make_room(tmp_path: Path) -> None:
    with a_plane(cache_max_bytes=1 << 20) as native:
        many = tar_of(tmp_path / "many.tar", {f"d{number}": b"%d" % number for number in range(2000)})
        digest = native.write("many", many)
        image = native.image("many", digest)
        assert (native.overlay(image) / "d7").read_bytes() == b"7"
        kept = native.folder / "cache/metadata"
        before = set(kept.glob("*/*"))
        assert len(before) == 2
        native.unmount_all()
        native.dataplane.unmount(1)
        files = {f"f{number}": noise(str(number), 100_000) for number in range(12)}
        root = native.root("next", files)
        for path, data in files.items():
            assert (root / path).read_bytes() == data
        assert not before & set(kept.glob("*/*"))
        assert (native.overlay(native.image("many", digest)) / "d8").read_bytes() == b"8"


def test_a_flipped_bit_in_the_cache_is_found_and_replaced_for_new_mounts(native: Native) -> None:
    files = {"a": noise("a", 5000), "b": noise("b", 5000)}
    root = native.root("one", files)
    assert {path: (root / path).read_bytes() for path in files} == files
    victim, other = sorted(native.data[0].glob("??/*"))
    held = victim.read_bytes()
    victim.chmod(0o644)
    with victim.open("r+b") as file:
        file.write(bytes([held[0] ^ 1]))
    native.dataplane.stop()
    again = DataPlane(replace(native.dataplane.launch, verify_cache=True))
    native.dataplane = again
    native.unmount_all()
    again.start()
    until(lambda: not victim.exists())
    assert other.exists()
    assert f"{victim} is damaged" in native.log()
    new = native.overlay(native.image("one"))
    assert {path: (new / path).read_bytes() for path in files} == files


def test_metadata_that_a_power_failure_tore_are_built_again(native: Native) -> None:
    files = {"a": noise("a", 5000), "b": noise("b", 5000)}
    digest = native.write("one", tar_of(native.folder / "one.tar", files))
    root = native.overlay(native.image("one", digest))
    assert (root / "a").read_bytes() == files["a"]
    native.unmount_all()
    native.dataplane.stop()
    for torn in ("metadata.erofs", "contents.index"):
        (image,) = (native.folder / "cache/metadata").glob(f"*/{torn}")
        image.write_bytes(image.read_bytes()[:-2048] + bytes(2048))
        (native.folder / "cache/contents/synced").write_text("another-boot 1")
        native.dataplane.start()
        assert "the metadata of 1 layers were damaged" in native.log()
        root = native.overlay(native.image("one", digest))
        assert {path: (root / path).read_bytes() for path in files} == files
        native.unmount_all()
        native.dataplane.stop()
        (native.folder / "log").write_text("")
    native.dataplane.start()
