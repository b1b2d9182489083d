"""The image of external tables of contents: one layer for each, found by the digest of the layer that it belongs to.

It lies beside the image, under the same tag with ``-esgztoc`` (estargz, "eStargz image with an external TOC").
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping

from isal import igzip

from ipfs_store.formats.names import ANNOTATION_EXTERNAL_TOC_LAYER
from ipfs_store.oci import Descriptor, Digest, Platform
from ipfs_store.oci.manifest import encode_document
from ipfs_store.oci.media_types import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST

TOC_SUFFIX = "-esgztoc"


def toc_descriptor(layer: Digest, blob: bytes) -> Descriptor:
    """Of a TOC's blob (tar.gz) that belongs to ``layer``."""
    return Descriptor(OCI_LAYER_GZIP, Digest.of(blob), len(blob), (), {ANNOTATION_EXTERNAL_TOC_LAYER: str(layer)})


def toc_diff_id(blob: bytes) -> Digest:
    """The digest of the TOC's tar. CPU work."""
    hasher = hashlib.sha256()
    with igzip.open(io.BytesIO(blob), "rb") as file:  # type: ignore[no-untyped-call]
        while piece := file.read(1 << 20):
            hasher.update(piece)
    return Digest(hasher.hexdigest())


def toc_image(tocs: Mapping[Descriptor, Digest], platform: Platform) -> tuple[tuple[Descriptor, bytes], tuple[Descriptor, bytes]]:
    """Config and manifest of the image of ``tocs`` (each with its DiffID), ordered by digest as the reference does."""
    layers = sorted(tocs, key=lambda toc: (str(toc.digest), toc.annotations[ANNOTATION_EXTERNAL_TOC_LAYER]))
    # The reference writes an empty config; with DiffIDs in it, tools that check them copy and unpack the image too.
    config_data = encode_document(
        {
            "architecture": platform.architecture,
            "os": platform.os,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [str(tocs[toc]) for toc in layers]},
        }
    )
    config = Descriptor(OCI_CONFIG, Digest.of(config_data), len(config_data))
    data = encode_document(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config.to_json(),
            "layers": [toc.to_json() for toc in layers],
        }
    )
    return (config, config_data), (Descriptor(OCI_MANIFEST, Digest.of(data), len(data)), data)
