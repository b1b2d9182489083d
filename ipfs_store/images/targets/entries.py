"""The files of a layout beside its blobs: what they are called and what is in them (image-spec, image-layout.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ipfs_store.oci import Descriptor
from ipfs_store.oci.manifest import encode_document
from ipfs_store.oci.media_types import OCI_INDEX

MARKER = "oci-layout"
INDEX = "index.json"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
CONTAINERD_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"


def blob_name(digest_hex: str) -> str:
    """Where a blob lies."""
    return f"blobs/sha256/{digest_hex}"


def entry(root: Descriptor, name: str) -> Descriptor:
    """What ``index.json`` says of an image: its descriptor, named as containerd names it (full) and as skopeo looks for it (the tag)."""
    kept = {key: value for key, value in root.annotations.items() if key not in (CONTAINERD_NAME, REF_NAME)}
    full = "/" in name
    last = name.partition("@")[0].rpartition("/")[2]
    tag = last.partition(":")[2] if full else name
    said = {CONTAINERD_NAME: name if full else "", REF_NAME: tag}
    return replace(root, annotations={**kept, **{key: value for key, value in said.items() if value}})


def merged(before: Sequence[Descriptor], added: Iterable[Descriptor]) -> list[Descriptor]:
    """``before`` with ``added``; an image of the same name, or the same image without one, makes place."""
    new = list(added)
    taken = {_names(item) for item in new}
    return [
        item for item in before if _names(item) not in taken or (not any(_names(item)) and item.digest not in {n.digest for n in new})
    ] + new


def index_document(entries: Sequence[Descriptor]) -> bytes:
    """A new ``index.json``."""
    return encode_document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [item.to_json() for item in entries]})


def _names(item: Descriptor) -> tuple[str, str]:
    return item.annotations.get(CONTAINERD_NAME, ""), item.annotations.get(REF_NAME, "")
