"""A layer's metadata, half of them made by a process beside: the same as made by one, and its errors are the layer's."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from ipfs_store.erofs import write_image
from ipfs_store.errors import InvalidLayer, StorageFailed
from ipfs_store.formats.document import Item, decode_document, encode_document
from ipfs_store.formats.entries import decode_toc
from ipfs_store.formats.footer import TocLocation
from snapshotter.metadata import beside
from snapshotter.metadata.build import build_metadata
from snapshotter.metadata.contentid import make_scope
from snapshotter.metadata.gather import MAX_STREAM
from snapshotter.metadata.index import encode_index
from snapshotter.metadata.kept import IMAGE, INDEX, Job, build

SCOPE = make_scope(b"salt", "")


def digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def job(folder: Path, *items: Item) -> Job:
    return Job(folder / "key", TocLocation("estargz", 1 << 30, 0, 1 << 30), encode_document(items), SCOPE, "layer")


def regular(name: str, offset: int, size: int = 1000, inner: int = 0) -> Item:
    return Item(
        name=name, type="reg", mode=0o644, size=size, offset=offset, inner_offset=inner, digest=digest(name), chunk_digest=digest(name)
    )


def test_the_pair_is_what_one_process_makes(tmp_path: Path) -> None:
    work = job(
        tmp_path,
        *(regular(f"d/f{number}", 5000 * number) for number in range(300)),
        regular("d/empty", 0, size=0),
        replace(regular("d/labelled", 1_800_000), xattrs={"user.label": b"more than a redirect"}),
        Item(name="d/.wh.gone", type="reg", mode=0o644),
        Item(name="d/.wh..wh.aufs", type="dir"),
        regular("d/.wh..wh.aufs/below", 2_000_000),
        Item(name="again", type="hardlink", link_name="d/f7"),
    )
    build(work)
    toc = decode_toc(decode_document(work.toc), kind="estargz", digest="layer", payload_end=1 << 30)
    metadata = build_metadata(toc, scope=SCOPE, layer="layer")
    image = write_image(metadata.root)
    assert (work.folder / IMAGE).read_bytes() == image
    index = encode_index(metadata.contents, kind="estargz", entries=len(toc.entries), image=image)
    assert (work.folder / INDEX).read_bytes() == index
    assert len(metadata.contents.ids) == 301  # what is not shown has none


def test_an_error_of_the_other_process_is_the_layers(tmp_path: Path) -> None:
    with pytest.raises(InvalidLayer, match="'deep' lies in a compressed stream of more than"):
        build(job(tmp_path, regular("deep", 0, inner=MAX_STREAM)))
    assert not list(tmp_path.iterdir())


def test_another_process_that_ends_is_no_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "content_ids", lambda *_, **__: os._exit(1))
    with pytest.raises(StorageFailed, match="the process that gathered the contents of layer ended"):
        build(job(tmp_path, regular("a", 0)))
