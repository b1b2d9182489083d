"""The image root: one DAG-CBOR block that links everything an image has (docs/image-dag.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ipfs_store.cids import DAG_CBOR, Cid, cid_of, format_cid, parse_cid
from ipfs_store.dag import dagcbor
from ipfs_store.errors import InvalidDag, InvalidDescriptor
from ipfs_store.nodes.interface import Block
from ipfs_store.oci import Descriptor, Digest

KIND = "ipfs-store.image"
VERSION = 1
ROOT_ANNOTATION = "org.ipfs-store.image.root"
"""On the image's descriptor: the CID of its root."""


class RootBuilder:
    """Collects what was pushed, and makes the root of it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._manifests: list[dict[str, Any]] = []

    def add_manifest(self, manifest: Descriptor, config: Descriptor, layers: Sequence[Descriptor]) -> None:
        """A manifest with its config and layers, each with its ``ipfs://`` URL."""
        item = {**_entry(manifest), "config": _entry(config), "layers": [_entry(layer) for layer in layers]}
        if manifest.platform is not None:
            item["platform"] = str(manifest.platform)
        self._manifests.append(item)

    def build(self, top: Descriptor) -> Block:
        """The root of an image whose index or manifest is ``top``."""
        entries = [_entry(top)]
        for manifest in self._manifests:
            entries += [manifest, manifest["config"], *manifest["layers"]]
        value = {
            "kind": KIND,
            "version": VERSION,
            "name": self._name,
            "image": _entry(top),
            "manifests": self._manifests,
            "digests": {entry["digest"]: entry["blob"] for entry in entries},
        }
        data = dagcbor.encode(value)
        return Block(cid_of(DAG_CBOR, data), data)


def image_of_root(block: bytes) -> Descriptor:
    """The descriptor of the index or manifest that a root block links; raises InvalidDag. Unknown fields are ignored."""
    value = dagcbor.decode(block)
    if not isinstance(value, dict) or value.get("kind") != KIND:
        raise InvalidDag("this DAG-CBOR block is not an image root")
    if value.get("version") != VERSION:
        raise InvalidDag(f"an image root of version {value.get('version')!r}; this program knows version {VERSION}")
    image = value.get("image")
    if not isinstance(image, dict) or not isinstance(image.get("blob"), dagcbor.CidLink):
        raise InvalidDag("the image root links no index or manifest")
    document = {"mediaType": image.get("mediaType"), "digest": image.get("digest"), "size": image.get("size")}
    try:
        return Descriptor.from_json({**document, "urls": [f"ipfs://{format_cid(image['blob'].cid)}"]}, where="image root")
    except InvalidDescriptor as error:
        raise InvalidDag(error.message) from error


def cid_of_urls(descriptor: Descriptor) -> Cid:
    """The CID that the descriptor's first ``ipfs://`` URL names; raises InvalidDescriptor."""
    for url in descriptor.urls:
        if url.startswith("ipfs://"):
            return parse_cid(url)
    raise InvalidDescriptor(
        f"{descriptor.media_type} {descriptor.digest} has no ipfs:// URL", hint="the image was not pushed into IPFS; ipfs-push does that"
    )


def _entry(descriptor: Descriptor) -> dict[str, Any]:
    digest: Digest = descriptor.digest
    return {
        "mediaType": descriptor.media_type,
        "digest": str(digest),
        "size": descriptor.size,
        "blob": dagcbor.CidLink(cid_of_urls(descriptor)),
    }
