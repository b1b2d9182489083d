"""What the labels of a Prepare say about a remote layer. The keys are containerd's CRI plugin's and stargz-snapshotter's."""

from __future__ import annotations

from collections.abc import Mapping

from ipfs_store.cids import format_cid, parse_cid
from ipfs_store.errors import InvalidCid
from ipfs_store.formats.names import ANNOTATION_TOC_OBJECT
from snapshotter.mounts.interface import LayerSource

TARGET = "containerd.io/snapshot.ref"
"""The name that the snapshot is to have when it is committed."""
REMOTE = "containerd.io/snapshot/remote"
NAMESPACE = "io.ipfs-store/namespace"
"""Kept with a remote snapshot: whose content it is, where namespaces share none."""
REMOTE_VALUE = "remote snapshot"
_URLS = "containerd.io/snapshot/remote/urls"
_DIGESTS = ("containerd.io/snapshot/remote/stargz.digest", "containerd.io/snapshot/cri.layer-digest")
_TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
TOC = ANNOTATION_TOC_OBJECT
"""The layer's TOC as an object of its own, a CID."""


def namespace_of(name: str) -> str:
    """containerd's namespace in a snapshot's name as it hands it to us, ``NAMESPACE/NUMBER/KEY``; empty where a name is of another form."""
    parts = name.split("/", 2)
    return parts[0] if len(parts) == 3 and parts[1].isdecimal() else ""


def layer_source(labels: Mapping[str, str]) -> LayerSource | str:
    """Where the layer is, or why that is not known."""
    digest = next((labels[key] for key in _DIGESTS if labels.get(key)), "")
    wrong = ""
    for url in labels.get(_URLS, "").split(","):
        if url.startswith("ipfs://"):
            try:
                return LayerSource(
                    format_cid(parse_cid(url)), digest, labels.get(_TOC_DIGEST, ""), labels.get(NAMESPACE, ""), labels.get(TOC, "")
                )
            except InvalidCid as error:
                wrong = error.message
    return wrong or f"no ipfs:// URL is known for layer {digest or 'of unknown digest'}"
