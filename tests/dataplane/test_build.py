"""From tables of contents that decode to trees that can be mounted, or a reason why not."""

from __future__ import annotations

from typing import Any

import pytest

from ipfs_store.errors import InvalidLayer
from ipfs_store.formats.document import decode_document
from ipfs_store.formats.entries import decode_toc
from snapshotter.dataplane.build import build_tree
from snapshotter.dataplane.tree import ROOT, LayerTree
from tests.formats import hostile
from tests.formats.hostile import DIGEST, file


def tree(*entries: dict[str, Any], payload_end: int = 900) -> LayerTree:
    return build_tree(decode_toc(decode_document(hostile.toc(entries)), kind="zstd:chunked", digest=DIGEST, payload_end=payload_end))


def test_a_hole_is_zeros_that_are_nowhere_in_the_blob() -> None:
    built = tree(
        file(size=30, chunkSize=10, offset=500),
        {"name": "file", "type": "chunk", "chunkOffset": 10, "chunkSize": 15, "chunkType": "zeros", "chunkDigest": DIGEST, "offset": 700},
        {"name": "file", "type": "chunk", "chunkOffset": 25, "offset": 800, "chunkDigest": DIGEST},
    )
    node = built.lookup(ROOT, b"file")
    assert [built.is_hole(chunk) for chunk in built.chunks(node, 0, 30)] == [False, True, False]
    assert [built.chunk_size[chunk] for chunk in built.chunks(node, 0, 30)] == [10, 15, 5]


def test_names_of_one_file_are_one_node_whatever_leads_to_which() -> None:
    links = [{"name": name, "type": "hardlink", "linkName": target} for name, target in (("a", "b"), ("b", "c"), ("c", "file"))]
    built = tree(*links, file())
    (node,) = {built.lookup(ROOT, name) for name in (b"a", b"b", b"c", b"file")}
    assert built.nlink[node] == 4


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"name": "c", "type": "char", "devMajor": 1 << 12}], "'c' is a device 4096:0, which does not exist on Linux"),
        ([{"name": "l", "type": "hardlink", "linkName": ".wh..wh.x"}, file(".wh..wh.x")], "'l' is a hard link to '.wh..wh.x'"),
        ([file(size=130 << 20)], "lies in a compressed stream of more than 128 MiB"),
    ],
)
def test_what_cannot_be_mounted_is_refused_with_its_name(entries: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InvalidLayer, match=message):
        tree(*entries, payload_end=1 << 30)
