"""Manifests, indexes and configs: checked when read, and nothing lost when rewritten."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_store.errors import InvalidDescriptor
from ipfs_store.oci import Config, Descriptor, Digest, Index, Manifest, media_types
from ipfs_store.oci.manifest import MAX_DOCUMENT

SHA = "sha256:" + "12" * 32


def descriptor(media_type: str = media_types.OCI_LAYER_GZIP, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": SHA, "size": 7, **more}


def manifest(**more: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_MANIFEST,
        "config": descriptor(media_types.OCI_CONFIG),
        "layers": [descriptor(annotations={"a": "b"}, urls=["https://x"], data="aGk=")],
        **more,
    }


def config(**more: Any) -> dict[str, Any]:
    return {"os": "linux", "architecture": "arm", "variant": "v7", "rootfs": {"type": "layers", "diff_ids": [SHA]}, **more}


def as_bytes(value: object) -> bytes:
    return json.dumps(value).encode()


def test_a_manifest_gives_its_config_and_layers() -> None:
    parsed = Manifest.parse(as_bytes(manifest(annotations={"k": "v"})))
    assert parsed.config.media_type == media_types.OCI_CONFIG
    assert [layer.size for layer in parsed.layers] == [7]
    assert parsed.annotations == {"k": "v"}


def test_rewriting_keeps_what_it_does_not_know() -> None:
    original = manifest(annotations={"k": "v"}, subject=descriptor(), later={"field": [1]})
    parsed = Manifest.parse(as_bytes(original))
    again = parsed.replace(layers=[dataclasses.replace(parsed.layers[0], urls=("ipfs://x",))])
    wanted = {**original, "layers": [{**original["layers"][0], "urls": ["ipfs://x"]}]}
    assert json.loads(again.to_bytes()) == wanted
    assert Manifest.parse(again.to_bytes()).layers == again.layers


def test_an_index_keeps_platform_fields_and_annotations() -> None:
    platform = {"os": "windows", "architecture": "amd64", "os.version": "10.0", "os.features": ["win32k"]}
    original = {"schemaVersion": 2, "manifests": [descriptor(media_types.OCI_MANIFEST, platform=platform)], "annotations": {"k": "v"}}
    parsed = Index.parse(as_bytes(original))
    assert parsed.media_type == media_types.OCI_INDEX
    assert json.loads(parsed.replace().to_bytes()) == {**original, "mediaType": media_types.OCI_INDEX}


def test_a_config_keeps_history_and_its_place() -> None:
    original = config(history=[{"created_by": "x"}], config={"Cmd": ["a"]}, created="2024-01-01T00:00:00Z")
    parsed = Config.parse(as_bytes(original))
    assert str(parsed.platform) == "linux/arm/v7"
    other = Digest.of(b"other")
    again = json.loads(parsed.replace(diff_ids=[other]).to_bytes())
    assert again == {**original, "rootfs": {"type": "layers", "diff_ids": [str(other)]}}
    assert list(again) == list(original)


@pytest.mark.parametrize(
    "bad",
    [
        manifest(manifests=[]),
        manifest(schemaVersion=1),
        manifest(mediaType=media_types.OCI_INDEX),
        manifest(mediaType=3),
        manifest(config=None),
        manifest(config={}),
        manifest(layers={}),
        manifest(layers=[descriptor(size=-1)]),
        manifest(layers=[descriptor(size=True)]),
        manifest(layers=[descriptor(size=1.5)]),
        manifest(layers=[{**descriptor(), "digest": "sha256:short"}]),
        manifest(layers=[descriptor()] * 10_001),
        {key: value for key, value in manifest().items() if key != "layers"},
        [],
        "text",
        None,
    ],
)
def test_what_is_no_manifest_is_refused_in_one_line(bad: object) -> None:
    with pytest.raises(InvalidDescriptor) as caught:
        Manifest.parse(as_bytes(bad), where="manifest sha256:1234")
    assert caught.value.message.startswith("manifest sha256:1234")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 200_000, b'{"a":' * 200_000, b'{"schemaVersion":' + b"9" * 10_000 + b"}"])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    for parse in (Manifest.parse, Index.parse, Config.parse):
        with pytest.raises(InvalidDescriptor):
            parse(data)


def test_a_document_too_large_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(InvalidDescriptor, match="limit"):
        Manifest.parse(b" " * (MAX_DOCUMENT + 1))


def test_a_document_must_be_what_its_descriptor_says() -> None:
    with pytest.raises(InvalidDescriptor, match="descriptor says"):
        Manifest.parse(as_bytes(manifest()), media_type=media_types.DOCKER_MANIFEST)
    with pytest.raises(InvalidDescriptor):
        Index.parse(as_bytes(manifest()))


@pytest.mark.parametrize(
    "bad",
    [config(rootfs=None), config(rootfs={}), config(rootfs={"type": "other", "diff_ids": []}), config(os=3),
     config(rootfs={"type": "layers", "diff_ids": [3]}), config(rootfs={"type": "layers", "diff_ids": ["sha512:00"]})],
)  # fmt: skip
def test_what_is_no_config_is_refused(bad: object) -> None:
    with pytest.raises(InvalidDescriptor):
        Config.parse(as_bytes(bad))


@given(
    st.dictionaries(
        st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=5)
    ),
    st.lists(st.integers(0, 2**62), max_size=5),
)
def test_any_manifest_survives_being_rewritten(unknown: dict[str, Any], sizes: list[int]) -> None:
    known = manifest(layers=[descriptor(size=size) for size in sizes])
    unknown.pop("manifests", None)
    parsed = Manifest.parse(as_bytes({**unknown, **known}))
    assert json.loads(parsed.replace().to_bytes()) == {**unknown, **known}


@pytest.mark.parametrize(
    ("docker", "oci", "compression"),
    [
        (media_types.DOCKER_LAYER, media_types.OCI_LAYER, "none"),
        (media_types.DOCKER_LAYER_GZIP, media_types.OCI_LAYER_GZIP, "gzip"),
        (f"{media_types.DOCKER_LAYER}.zstd", media_types.OCI_LAYER_ZSTD, "zstd"),
    ],
)
def test_docker_types_have_oci_counterparts(docker: str, oci: str, compression: str) -> None:
    assert media_types.to_oci(docker) == oci == media_types.to_oci(oci)
    assert media_types.is_layer(docker) and media_types.is_layer(oci)
    assert media_types.compression_of(docker) == media_types.compression_of(oci) == compression


def test_what_is_no_layer_is_left_alone() -> None:
    signature = "application/vnd.dev.cosign.simplesigning.v1+json"
    assert not media_types.is_layer(signature)
    assert media_types.to_oci(signature) == signature
    with pytest.raises(ValueError, match="not a layer"):
        media_types.compression_of(signature)


def test_a_descriptor_keeps_embedded_data() -> None:
    value = descriptor(data="aGk=", artifactType="x/y")
    assert Descriptor.from_json(value).to_json() == value
