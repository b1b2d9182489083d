"""OCI documents, references and platforms."""

from __future__ import annotations

import json
from collections.abc import Iterator

from ipfs_store.oci import media_types
from ipfs_store.oci.descriptor import Descriptor
from ipfs_store.oci.manifest import Config, Index, Manifest, decode_document
from ipfs_store.oci.platform import normalise_platform, parse_platform, runs_on
from ipfs_store.oci.reference import Reference
from tests.fuzz.choices import Choices

_DIGEST = "sha256:" + "0" * 64


def manifest(data: bytes) -> None:
    """The first byte picks the kind; what parses is the same after a round trip."""
    given = Choices(data)
    kind, text = given.byte() % 4, given.rest()
    if kind == 0:
        found = Manifest.parse(text)
        again = Manifest.parse(found.replace(layers=found.layers, config=found.config).to_bytes())
        assert (again.config, again.layers, again.media_type) == (found.config, found.layers, found.media_type)
        assert Manifest.parse(found.to_bytes()).layers == found.layers and dict(found.annotations) is not None
    elif kind == 1:
        index = Index.parse(text)
        assert Index.parse(index.replace(manifests=index.manifests).to_bytes()).manifests == index.manifests
        for descriptor in index.manifests:
            if descriptor.platform is not None:
                assert normalise_platform(descriptor.platform) in runs_on(descriptor.platform)
    elif kind == 2:
        config = Config.parse(text)
        again_config = Config.parse(config.replace(diff_ids=config.diff_ids).to_bytes())
        assert (again_config.diff_ids, again_config.platform) == (config.diff_ids, config.platform)
    else:
        one = Descriptor.from_json(decode_document(text, where="descriptor"))
        assert Descriptor.from_json(json.loads(json.dumps(one.to_json()))) == one


def manifest_seeds() -> Iterator[bytes]:
    layer = {"mediaType": media_types.OCI_LAYER_GZIP, "digest": _DIGEST, "size": 5, "urls": ["ipfs://x"], "annotations": {"a": "b"}}
    config = {"mediaType": media_types.OCI_CONFIG, "digest": _DIGEST, "size": 5}
    one = {"schemaVersion": 2, "mediaType": media_types.OCI_MANIFEST, "config": config, "layers": [layer]}
    yield b"\0" + json.dumps(one).encode()
    platform = {"os": "linux", "architecture": "arm64", "variant": "v8", "os.version": "1"}
    listed = [{"mediaType": media_types.OCI_MANIFEST, "digest": _DIGEST, "size": 5, "platform": platform}]
    yield b"\1" + json.dumps({"schemaVersion": 2, "manifests": listed}).encode()
    yield b"\2" + json.dumps({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [_DIGEST]}}).encode()
    yield b"\3" + json.dumps({**layer, "platform": platform, "data": "eA=="}).encode()


def reference(data: bytes) -> None:
    """A name or a platform; what parses prints as what parses to the same."""
    given = Choices(data)
    kind, text = given.byte() % 2, given.rest().decode("utf-8", "replace")
    if kind:
        platform = parse_platform(text)
        assert parse_platform(str(platform)) == platform
    else:
        found = Reference.parse(text)
        assert Reference.parse(str(found)) == found and Reference.parse(found.familiar) == found


def reference_seeds() -> Iterator[bytes]:
    for text in ("debian:12", "localhost:5000/a/b", f"ghcr.io/o/n:t@{_DIGEST}", "[::1]:5000/x", "index.docker.io/library/a"):
        yield b"\0" + text.encode()
    for text in ("linux/amd64", "linux/arm/v7", "arm64", "windows", "linux/arm64/v8"):
        yield b"\1" + text.encode()
