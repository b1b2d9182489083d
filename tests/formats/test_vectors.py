"""Blobs that other tools wrote read back exactly."""

import json
from pathlib import Path

import pytest

from ipfs_store.errors import InvalidLayer, NotSeekable, TocMismatch
from ipfs_store.formats.layer import Layer, open_layer, read_file
from ipfs_store.formats.toc import Entry
from tests.formats.blobs import VECTORS, BytesBlob, of_entry, of_tar

_ALL = {vector["blob"]: vector for vector in json.loads((VECTORS / "vectors.json").read_text())["vectors"]}
INSIDE = ["default.blob", "chunk64k.blob", "prioritized.blob", "minchunk.blob", "zstd.blob", "skopeo-zstd.blob"]
OUTSIDE = ["externaltoc.blob", "keepdiffid.blob"]


def _toc_blob(name: str) -> BytesBlob | None:
    return BytesBlob((VECTORS / _ALL[name]["toc_blob"]).read_bytes()) if name in OUTSIDE else None


@pytest.mark.parametrize("name", INSIDE + OUTSIDE)
async def test_every_file_of_a_vector_is_as_it_was(name: str, source: Path) -> None:
    blob = BytesBlob((VECTORS / name).read_bytes())
    layer = await open_layer(blob, _ALL[name]["descriptor"]["annotations"], external_toc=_toc_blob(name))
    expected, contents = of_tar(source)
    if name == "skopeo-zstd.blob":  # its writer loses attributes without a value
        expected["var/xattr"][-1].pop("user.empty")  # type: ignore[attr-defined]
    found = {entry.path: entry for entry in layer.toc.entries if entry.path}
    implied = {path for path in found if path not in expected}
    assert all(found[path].type == "dir" and any(other.startswith(path + "/") for other in expected) for path in implied)
    assert {path: of_entry(entry) for path, entry in found.items() if path not in implied} == expected
    for path, data in contents.items():
        assert b"".join([piece async for piece in read_file(blob, layer, found[path])]) == data, path


async def test_prioritized_files_lie_before_the_landmark() -> None:
    vectors = json.loads((VECTORS / "vectors.json").read_text())
    layer = await open_layer(BytesBlob((VECTORS / "prioritized.blob").read_bytes()))
    by_path = {entry.path: entry for entry in layer.toc.entries}
    prioritized = vectors["prioritized_files"]
    assert layer.toc.prefetch_end > 0
    assert all(by_path[path].chunks[-1].end <= layer.toc.prefetch_end for path in prioritized)
    assert not any(path.endswith("landmark") for path in by_path)


async def test_the_toc_costs_one_read_where_it_is_short() -> None:
    blob = BytesBlob((VECTORS / "default.blob").read_bytes())
    await open_layer(blob)
    assert len(blob.reads) == 1


async def test_a_toc_with_another_digest_than_asked_for_is_refused() -> None:
    blob = BytesBlob((VECTORS / "default.blob").read_bytes())
    with pytest.raises(TocMismatch, match="was asked for"):
        await open_layer(blob, toc_digest="sha256:" + "0" * 64)


async def test_a_layer_whose_toc_is_elsewhere_is_refused_with_a_reason() -> None:
    with pytest.raises(NotSeekable, match="image of its own"):
        await open_layer(BytesBlob((VECTORS / "externaltoc.blob").read_bytes()))


@pytest.mark.parametrize("name", OUTSIDE)
async def test_a_toc_that_is_elsewhere_is_read_only_where_its_digest_is_known(name: str) -> None:
    blob, toc = BytesBlob((VECTORS / name).read_bytes()), _toc_blob(name)
    with pytest.raises(InvalidLayer, match="nobody says which digest"):
        await open_layer(blob, external_toc=toc)
    with pytest.raises(TocMismatch, match="was asked for"):
        await open_layer(blob, external_toc=toc, toc_digest="sha256:" + "0" * 64)


async def test_a_range_of_a_file_costs_the_chunks_that_hold_it() -> None:
    blob = BytesBlob((VECTORS / "chunk64k.blob").read_bytes())
    layer = await open_layer(blob)
    entry = layer.toc.by_path["usr/lib/big"]
    whole = b"".join([piece async for piece in read_file(blob, layer, entry)])
    blob.reads.clear()
    assert await part(blob, layer, entry, 65_530, 12) == whole[65_530:65_542]
    assert blob.reads == [(entry.chunks[0].offset, entry.chunks[1].end - entry.chunks[0].offset)]
    assert await part(blob, layer, entry, len(whole) - 5, 100) == whole[-5:]
    assert await part(blob, layer, entry, len(whole), 100) == b""


async def test_all_chunks_of_one_stream_are_read_by_the_same_range() -> None:
    layer = await open_layer(BytesBlob((VECTORS / "minchunk.blob").read_bytes()))
    chunks = [chunk for entry in layer.toc.entries for chunk in entry.chunks]
    assert len({chunk.offset for chunk in chunks}) == len({(chunk.offset, chunk.end) for chunk in chunks}) < len(chunks)


async def part(blob: BytesBlob, layer: Layer, entry: Entry, offset: int, size: int) -> bytes:
    return b"".join([piece async for piece in read_file(blob, layer, entry, offset, size)])
