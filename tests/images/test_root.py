"""Image roots: what goes in comes out, and what contradicts itself is refused before anything is fetched."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_store.cids import DAG_CBOR, DAG_PB, RAW, cid_of
from ipfs_store.dag import dagcbor
from ipfs_store.errors import InvalidDag
from ipfs_store.images.root import (
    ImageRoot,
    RootBlob,
    RootLayer,
    RootManifest,
    RootProfile,
    RootReferrer,
    RootToc,
    decode_root,
)
from ipfs_store.oci import Digest, Platform
from ipfs_store.oci.media_types import OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST

names = st.text(max_size=20)
sizes = st.integers(0, 1 << 40)


def blob(kind: str, name: str, size: int = 100) -> RootBlob:
    return RootBlob(kind, Digest.of(name.encode()), size, cid_of(DAG_PB, name.encode()))


def layer(name: str, size: int, *, toc: bool = True) -> RootLayer:
    found = RootToc(Digest.of(f"toc {name}".encode()), 7, 70, cid_of(RAW, f"toc {name}".encode())) if toc else None
    return RootLayer(blob(OCI_LAYER_GZIP, name, size), Digest.of(f"tar {name}".encode()) if toc else None, found)


@st.composite
def roots(draw: st.DrawFn) -> ImageRoot:
    made = draw(st.lists(sizes, min_size=1, max_size=6))
    layers = [layer(f"layer {number}", size, toc=bool(size % 2)) for number, size in enumerate(made)]
    platforms = draw(
        st.lists(
            st.builds(Platform, st.just("linux"), st.sampled_from(["amd64", "arm64"]), st.sampled_from(["", "v8"])), min_size=1, max_size=3
        )
    )
    manifests = tuple(
        RootManifest(
            blob(OCI_MANIFEST, f"manifest {number}"),
            blob(OCI_CONFIG, f"config {number}"),
            tuple(draw(st.lists(st.sampled_from(layers), max_size=8))),
            draw(st.sampled_from([platform, None])),
            tuple(RootProfile(name, 5, cid_of(RAW, name.encode())) for name in draw(st.lists(names, max_size=2))),
        )
        for number, platform in enumerate(platforms)
    )
    indexes = (blob(OCI_INDEX, "index"),) if len(manifests) > 1 or draw(st.booleans()) else ()
    referrers = (RootReferrer(manifests[0].blob.digest, blob(OCI_MANIFEST, "signature"), "x/y", (blob("a/b", "payload", 3),)),)
    return ImageRoot(draw(names), manifests, indexes, referrers if draw(st.booleans()) else ())


@given(roots())
def test_what_is_encoded_is_decoded(root: ImageRoot) -> None:
    block = root.encode()
    assert decode_root(block.data) == root
    assert block.cid == cid_of(DAG_CBOR, block.data)


def image() -> ImageRoot:
    manifests = tuple(
        RootManifest(
            blob(OCI_MANIFEST, f"manifest {number}"), blob(OCI_CONFIG, f"config {number}"),
            (layer("base", 1000), layer(f"app {number}", 10)), Platform("linux", architecture),
        )
        for number, architecture in enumerate(("amd64", "arm64"))
    )  # fmt: skip
    return ImageRoot("docker.io/library/x:1", manifests, (blob(OCI_INDEX, "index"),))


def test_it_says_how_much_there_is_to_fetch() -> None:
    root = image()
    # An index, two manifests, two configs of 100 bytes; a shared layer and two of their own; three TOC objects.
    assert root.size == 5 * 100 + 1000 + 2 * 10 + 3 * 7
    assert dagcbor.decode(root.encode().data)["size"] == root.size


def test_a_layer_of_two_platforms_is_there_once() -> None:
    value = dagcbor.decode(image().encode().data)
    assert len(value["layers"]) == 3
    assert [manifest["layers"] for manifest in value["manifests"]] == [[0, 1], [0, 2]]


def test_unknown_fields_are_ignored() -> None:
    value = dagcbor.decode(image().encode().data)
    value["later"] = {"link": dagcbor.CidLink(cid_of(RAW, b"x"))}
    value["layers"][0]["later"] = 1
    value["manifests"][0]["platform"]["later"] = []
    assert decode_root(dagcbor.encode(value)) == image()


LINK = dagcbor.CidLink(cid_of(DAG_PB, b"elsewhere"))


def put(path: str, item: object) -> Callable[[dict[str, Any]], None]:
    def change(value: Any) -> None:
        *folders, last = path.split("/")
        for folder in folders:
            value = value[int(folder) if folder.isdigit() else folder]
        if item is None:
            del value[last]
        else:
            value[int(last) if last.isdigit() and isinstance(value, list) else last] = item

    return change


def add_digest(value: dict[str, Any]) -> None:
    value["digests"][str(Digest.of(b"of nothing here"))] = LINK


def lie_about_a_digest(value: dict[str, Any]) -> None:
    value["digests"][value["layers"][1]["digest"]] = LINK


def forget_a_digest(value: dict[str, Any]) -> None:
    del value["digests"][value["layers"][1]["digest"]]


def swap_image(value: dict[str, Any]) -> None:
    value["image"] = value["manifests"][1] | {}


def one_digest_two_sizes(value: dict[str, Any]) -> None:
    value["manifests"][0]["config"]["size"] += 1
    value["manifests"][1]["config"] = value["manifests"][0]["config"] | {"size": 1}


def raw_leaf_of_another_digest(value: dict[str, Any]) -> None:
    value["layers"][0]["blob"] = dagcbor.CidLink(cid_of(RAW, b"other bytes"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("kind", "other"), "not an image root"),
        (put("kind", None), "not an image root"),
        (put("version", 2), "version 2"),
        (put("version", True), "version True"),
        (put("version", None), "version None"),
        (put("name", 5), "name is not a text"),
        (put("size", 1), "parts add up to"),
        (put("size", -1), "size is not a size"),
        (put("size", "many"), "size is not a size"),
        (put("image", None), "image is not a map"),
        (put("image", LINK), "image is not a map"),
        (swap_image, "image is not the first index"),
        (put("indexes", None), "indexes is not a list"),
        (put("indexes", []), "no index"),
        (put("manifests", []), "no manifest"),
        (put("manifests/0", 3), "manifests/0 is not a map"),
        (put("manifests/0/config", None), "manifests/0/config is not a map"),
        (put("manifests/0/layers", [7]), "manifests/0/layers/0 is not the number of a layer"),
        (put("manifests/0/layers", [-1]), "manifests/0/layers/0 is not the number of a layer"),
        (put("manifests/0/layers", [False]), "manifests/0/layers/0 is not the number of a layer"),
        (put("manifests/0/layers", [0]), "layers/1 is a layer of no manifest"),
        (put("manifests/0/mediaType", OCI_INDEX), "among its manifests"),
        (put("manifests/0/platform", "linux/amd64"), "platform is not a map"),
        (put("manifests/0/platform/os", ""), "platform/os is not a text"),
        (put("manifests/0/profiles", [{"name": "x", "size": 1, "blob": "bafy"}]), "profiles/0/blob is not a link"),
        (put("indexes/0/mediaType", OCI_MANIFEST), "among its indexes"),
        (put("layers/0/blob", None), "layers/0/blob is not a link"),
        (put("layers/0/blob", "bafy"), "layers/0/blob is not a link"),
        (put("layers/0/blob", dagcbor.CidLink(cid_of(DAG_CBOR, b"x"))), "layers/0/blob does not link a file"),
        (raw_leaf_of_another_digest, "layers/0/blob links a block that does not have the digest"),
        (put("layers/0/digest", "sha256:short"), "layers/0/digest is not a digest"),
        (put("layers/0/digest", 5), "layers/0/digest is not a digest"),
        (put("layers/0/size", 1 << 63), "layers/0/size is not a size"),
        (put("layers/0/size", None), "layers/0/size is not a size"),
        (put("layers/0/size", 3), "parts add up to"),
        (put("layers/0/mediaType", ""), "layers/0/mediaType is not a text"),
        (put("layers/0/diffId", "sha512:x"), "layers/0/diffId is not a digest"),
        (put("layers/0/toc", LINK), "layers/0/toc is not a map"),
        (put("layers/0/toc/blob", None), "layers/0/toc/blob is not a link"),
        (put("layers/0/toc/rawSize", "x"), "layers/0/toc/rawSize is not a size"),
        (put("digests", None), "digests is not a map"),
        (add_digest, "belongs to nothing of the image"),
        (lie_about_a_digest, "links something else than the image does"),
        (forget_a_digest, "is missing"),
        (put("digests/sha256:0", LINK), "is not a digest"),
        (one_digest_two_sizes, "twice, and not alike"),
        (put("referrers", [{"subject": str(Digest.of(b"?")), "mediaType": OCI_MANIFEST, "digest": str(Digest.of(b"s")), "size": 1, "blob": LINK, "blobs": []}]),
         "which it does not have"),
        (put("referrers", LINK), "referrers is not a list"),
    ],
)  # fmt: skip
def test_a_root_that_is_wrong_says_where(change: Callable[[dict[str, Any]], None], says: str) -> None:
    value = dagcbor.decode(image().encode().data)
    change(value)
    with pytest.raises(InvalidDag) as raised:
        decode_root(dagcbor.encode(value))
    assert says in raised.value.message
    assert "\n" not in raised.value.message


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidDag):
        decode_root(data)


@given(st.data())
def test_a_root_with_any_field_changed_never_ends_in_another_error(data: st.DataObject) -> None:
    value = dagcbor.decode(image().encode().data)
    places: list[tuple[Any, Any]] = []

    def walk(item: Any) -> None:
        for key in list(item) if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ():
            places.append((item, key))
            walk(item[key])

    walk(value)
    place, key = data.draw(st.sampled_from(places))
    place[key] = data.draw(st.sampled_from([0, -1, "", "x", b"", [], {}, True, LINK, [LINK], {"a": LINK}, 1 << 62]))
    with contextlib.suppress(InvalidDag):
        decode_root(dagcbor.encode(value))


def test_a_root_that_contradicts_itself_is_not_written() -> None:
    root = image()
    liar = replace(root.manifests[0].config, size=5)
    with pytest.raises(InvalidDag, match="not alike"):
        replace(root, manifests=(root.manifests[0], replace(root.manifests[1], config=liar))).encode()


def test_a_root_over_its_limit_is_not_written() -> None:
    layers = tuple(layer(f"layer {number}", 1) for number in range(3000))
    with pytest.raises(InvalidDag, match="over the limit"):
        ImageRoot("", (RootManifest(blob(OCI_MANIFEST, "m"), blob(OCI_CONFIG, "c"), layers),)).encode()
