"""Images that are kept whole: fetched in the background, evicted by nobody, until they are let go of."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ipfs_store.formats.toc import Chunk, Entry, Toc
from snapshotter.cache import ContentStore
from snapshotter.dataplane.client import DataPlaneFailed
from snapshotter.dataplane.keeping import SMALL, ContentKeeper
from snapshotter.metadata import ContentIndex
from snapshotter.metadata.build import build_metadata
from snapshotter.metadata.contentid import make_scope
from snapshotter.metadata.index import encode_index
from tests.dataplane.conftest import Plane, impatient, plane
from tests.dataplane.synthetic import ROOT, of_files
from tests.native.conftest import Native, a_plane, native, noise, tar_of
from tests.patience import until

__all__ = ["native", "plane"]

FILES = {f"d/f{number}": noise(str(number), 3000 * number) for number in range(40)} | {"large": noise("large", 3 << 20), "empty": b""}
NUMBER = 1


def until_whole(on: Native | Plane, number: int = NUMBER) -> None:
    """Return when the layer is here completely; an error of the pin is one of the test."""

    def whole() -> bool:
        (layer,) = (layer for layer in on.dataplane.status().layers if layer.layer == number)
        assert layer.pinned and not layer.pin_error, layer
        return layer.pin_left == 0

    until(whole)


def rebooted(native: Native) -> None:
    """Everything ends, nothing is mounted, and it begins again."""
    native.unmount_all()
    native.dataplane.stop()
    native.dataplane.start()


@pytest.mark.root
@pytest.mark.fuse
def test_all_of_a_pinned_image_is_here_without_being_read(native: Native) -> None:
    digest = native.write("one", tar_of(native.folder / "one.tar", FILES), chunk_size=4096)  # small files of several chunks
    image = native.image("one", digest)
    native.dataplane.pin("image", [NUMBER])
    until_whole(native)
    assert len(native.stored()) == len(FILES) - 2  # two are empty
    native.faults("missing")
    root = native.overlay(image)
    assert {path: (root / path).read_bytes() for path in FILES} == FILES
    status = native.dataplane.status(cached=True).layers[0]
    assert status.cached == sum(map(len, FILES.values()))


@pytest.mark.root
@pytest.mark.fuse
def test_what_is_pinned_stays_whoever_needs_room_and_goes_when_it_is_let_go_of() -> None:
    with a_plane(cache_max_bytes=8 << 20) as native:
        digest = native.write("one", tar_of(native.folder / "one.tar", FILES))
        native.image("one", digest)
        native.dataplane.pin("image", [NUMBER])
        until_whole(native)
        pinned = native.stored()
        rebooted(native)  # the pin is known to the next process before the layer is mounted
        others = {f"o{number}": noise(f"other {number}", 400_000) for number in range(30)}
        root = native.root("two", others)
        for path, data in others.items():
            assert (root / path).read_bytes() == data
        assert pinned <= native.stored()
        native.image("one", digest)
        assert native.status("one").pinned
        native.dataplane.pin("other name", [NUMBER])
        native.dataplane.pin("image", [NUMBER], pinned=False)
        assert native.status("one").pinned
        native.dataplane.pin("other name", [NUMBER], pinned=False)
        assert not native.status("one").pinned
        with pytest.raises(DataPlaneFailed, match="nothing is pinned as 'image'"):
            native.dataplane.pin("image", [NUMBER], pinned=False)
        native.unmount_all()
        native.dataplane.unmount(NUMBER)
        root = native.root("three", {f"t{number}": noise(f"third {number}", 400_000) for number in range(15)})
        for file in root.iterdir():
            file.read_bytes()
        assert not pinned <= native.stored()


@pytest.mark.root
@pytest.mark.fuse
def test_an_image_that_cannot_fit_is_refused() -> None:
    with a_plane(cache_max_bytes=1 << 20) as native:
        native.root("one", FILES)
        with pytest.raises(DataPlaneFailed, match="what is pinned would take") as caught:
            native.dataplane.pin("image", [NUMBER])
        assert "cache.max_bytes" in (caught.value.hint or "")
        with pytest.raises(DataPlaneFailed, match="layer 77 is not mounted"):
            native.dataplane.pin("image", [NUMBER, 77])
        assert not native.status("one").pinned


@pytest.mark.root
@pytest.mark.fuse
def test_while_nobody_has_the_blocks_the_pin_says_so_and_goes_on_later(native: Native) -> None:
    native.root("one", FILES)
    native.dataplane = impatient(native.dataplane)
    native.faults("missing")
    native.dataplane.pin("image", [NUMBER])
    until(lambda: native.status("one").pin_error)
    assert "nobody has bafytest" in native.status("one").pin_error
    native.faults("ok")
    while native.status("one").pin_left or native.status("one").pin_error:
        native.dataplane.pin("image", [NUMBER])  # it would be tried again by itself
    assert len(native.stored()) == len(FILES) - 2


@pytest.mark.root
@pytest.mark.fuse
def test_a_pin_goes_with_its_image(native: Native) -> None:
    native.root("one", FILES)
    native.dataplane.pin("image", [NUMBER])
    assert list((native.folder / "cache/pins").iterdir())
    native.dataplane.unmount(NUMBER)
    assert not list((native.folder / "cache/pins").iterdir())


@pytest.mark.root
@pytest.mark.fuse
def test_a_pin_that_cannot_be_read_stops_nobody(native: Native) -> None:
    digest = native.write("one", tar_of(native.folder / "one.tar", FILES))
    native.image("one", digest)
    native.dataplane.pin("image", [NUMBER])
    (pin,) = (native.folder / "cache/pins").iterdir()
    pin.write_text("no JSON")
    rebooted(native)
    assert f"{pin} cannot be read" in native.log()
    native.image("one", digest)
    assert not native.status("one").pinned
    native.dataplane.pin("image", [NUMBER])
    until_whole(native)


@pytest.mark.root
@pytest.mark.fuse
def test_a_portable_layer_is_pinned_too(plane: Plane) -> None:
    folder = plane.mount("one", of_files(FILES))
    plane.dataplane.pin("image", [NUMBER])
    until_whole(plane)
    plane.faults("missing")
    assert {path: (folder / path).read_bytes() for path in FILES} == FILES


def test_a_large_file_with_a_hole_is_complete_without_it(tmp_path: Path) -> None:
    data = [noise("a", SMALL), b"", noise("c", 1000)]
    sizes = [SMALL, 5000, 1000]
    chunks, at = [], 0
    for number, (piece, size) in enumerate(zip(data, sizes, strict=True)):
        digest = f"sha256:{hashlib.sha256(piece).hexdigest()}" if piece else ""
        chunks.append(Chunk(at, size, 100 * (number + 1) if piece else 0, 100 * (number + 2) if piece else 0, 0, digest))
        at += size
    entry = Entry("sparse", "reg", 0o644, 0, 0, 0, size=at, digest="sha256:" + "1" * 64, chunks=tuple(chunks))
    contents = build_metadata(Toc(entries=[ROOT, entry], digest=""), scope=make_scope(b"", ""), layer="").contents
    index = ContentIndex(encode_index(contents, kind="zstd:chunked", entries=2, image=b""), "index")
    keeper = ContentKeeper(ContentStore(tmp_path / "c"), index)
    assert list(keeper.missing().chunks) == [0, 2]
    keeper.keep({0: data[0]})
    keeper.keep({2: data[2]})
    assert keeper.missing().left == 0
    (stored,) = (tmp_path / "c/data").glob("??/*")
    assert stored.read_bytes() == data[0] + bytes(5000) + data[2]
